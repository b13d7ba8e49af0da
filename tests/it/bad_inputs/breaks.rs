//! Every way in which a message can be broken, by the contract itself: each field that a good message has is given
//! values of its kind that are empty, too long, out of range or no such value at all.

use std::rc::Rc;

use everstep_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

/// More than any payload may hold, and less than a message may.
const LARGE: usize = (2 << 20) + 1;
/// More than details of an attempt may hold.
const MIDDLING: usize = (64 << 10) + 1;
/// More than the headers of an answer may hold.
const HUGE: usize = 70_000;
const MANY: usize = 10_001;
const MANY_ENTRIES: usize = 1_001;
/// The years 1 and 9999, and a second beyond.
const YEAR_0: i64 = -62_135_596_801;
const YEAR_10000: i64 = 253_402_300_800;

type Apply = Rc<dyn Fn(&mut DynamicMessage)>;

/// One way to break a message.
#[derive(Clone)]
pub(super) struct Break {
    /// The field, such as `run_timeout` or `memo[note].encoding`.
    pub(super) path: String,
    /// What becomes of it, in a word.
    pub(super) how: String,
    apply: Apply,
}

impl Break {
    fn new(path: &str, how: impl Into<String>, apply: impl Fn(&mut DynamicMessage) + 'static) -> Self {
        Self { path: path.to_owned(), how: how.into(), apply: Rc::new(apply) }
    }

    /// The message as it is.
    pub(super) fn none() -> Self {
        Self::new("", "good", |_| {})
    }

    /// The same, as it is called from the message that holds this one.
    pub(super) fn called(&self, outer: &str) -> Self {
        Self { path: format!("{outer}.{}", self.path), ..self.clone() }
    }

    pub(super) fn broken(&self, good: &DynamicMessage) -> DynamicMessage {
        let mut message = good.clone();
        (self.apply)(&mut message);
        message
    }

    /// The same, of a message that holds the broken one where `put` finds it.
    fn within(self, place: &str, put: impl Fn(&mut DynamicMessage, &Apply) + 'static) -> Self {
        let apply = self.apply;
        let path = format!("{place}.{}", self.path);
        Self { path, how: self.how, apply: Rc::new(move |outer| put(outer, &apply)) }
    }
}

/// The contract.
pub(super) fn contract() -> anyhow::Result<DescriptorPool> {
    Ok(DescriptorPool::decode(FILE_DESCRIPTOR_SET)?)
}

/// Fields that this good message leaves unset, and so nobody breaks: by path. Members of a oneof count as one.
pub(super) fn unset(good: &DynamicMessage) -> Vec<String> {
    let mut paths = Vec::new();
    for field in good.descriptor().fields().filter(|field| field.containing_oneof().is_none()) {
        if !good.has_field(&field) && !matches!(field.kind(), Kind::Bool) {
            paths.push(field.name().to_owned());
        }
    }
    for (place, inner) in nested(good).into_iter().filter(|(_, inner)| !is_leaf(inner)) {
        paths.extend(unset(&inner).into_iter().map(|path| format!("{place}.{path}")));
    }
    paths
}

/// The messages that stand in a message.
fn nested(good: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let mut all = Vec::new();
    for (field, value) in good.fields() {
        let name = field.name();
        match value {
            Value::Message(inner) => all.push((name.to_owned(), inner.clone())),
            Value::List(items) => {
                let inner = items.iter().enumerate();
                all.extend(
                    inner.filter_map(|(i, v)| Some((format!("{name}[{i}]"), v.as_message()?.clone()))),
                );
            }
            Value::Map(entries) => {
                all.extend(entries.iter().filter_map(|(k, v)| {
                    Some((format!("{name}[{}]", k.as_str()?), v.as_message()?.clone()))
                }));
            }
            _ => {}
        }
    }
    all
}

/// Every way to break a good message, field by field.
pub(super) fn breaks(good: &DynamicMessage) -> Vec<Break> {
    let mut all = Vec::new();
    for oneof in good.descriptor().oneofs().filter(|oneof| oneof.fields().len() > 1) {
        let fields: Vec<_> = oneof.fields().collect();
        all.push(Break::new(oneof.name(), "unset", move |m| {
            fields.iter().for_each(|field| m.clear_field(field));
        }));
    }
    for field in good.descriptor().fields() {
        let has = good.has_field(&field);
        if field.is_map() {
            all.extend(of_map(good, &field));
        } else if field.is_list() {
            all.extend(of_list(good, &field));
        } else if has || field.containing_oneof().is_none() {
            all.extend(of_single(good, &field));
        } else {
            // Another member of the oneof, as empty as it can be.
            let name = field.name().to_owned();
            all.push(Break::new(&name, "instead", move |m| {
                m.set_field(&field, Value::default_value(&field.kind()));
            }));
        }
    }
    all
}

/// A message that is broken as one value.
fn is_leaf(message: &DynamicMessage) -> bool {
    matches!(message.descriptor().full_name(), "google.protobuf.Duration" | "google.protobuf.Timestamp")
}

fn of_single(good: &DynamicMessage, field: &FieldDescriptor) -> Vec<Break> {
    let mut all = Vec::new();
    for (how, value) in values(&field.kind(), field.name()) {
        let field = field.clone();
        let name = field.name().to_owned();
        all.push(Break::new(&name, how, move |m| m.set_field(&field, value.clone())));
    }
    if let Kind::Message(_) = field.kind() {
        let of = field.clone();
        all.push(Break::new(field.name(), "unset", move |m| m.clear_field(&of)));
    }
    let inner = good.get_field(field).as_message().filter(|inner| !is_leaf(inner)).cloned();
    if let (true, Some(inner)) = (good.has_field(field), inner) {
        for inner in breaks(&inner) {
            let field = field.clone();
            all.push(inner.within(field.clone().name(), move |outer, apply| {
                if let Some(inner) = outer.get_field_mut(&field).as_message_mut() {
                    apply(inner);
                }
            }));
        }
    }
    all
}

fn of_list(good: &DynamicMessage, field: &FieldDescriptor) -> Vec<Break> {
    let mut all = Vec::new();
    let items: Vec<Value> = good.get_field(field).as_list().map(<[_]>::to_vec).unwrap_or_default();
    let name = field.name();
    let first = items.first().cloned().unwrap_or_else(|| Value::default_value(&field.kind()));
    for (how, value) in [
        ("none", Vec::new()),
        ("twice", [items.clone(), items.clone()].concat()),
        ("many", vec![first.clone(); MANY]),
    ] {
        let field = field.clone();
        all.push(Break::new(name, how, move |m| m.set_field(&field, Value::List(value.clone()))));
    }
    for (i, item) in items.into_iter().enumerate() {
        let place = format!("{name}[{i}]");
        let Value::Message(inner) = item else {
            for (how, value) in values(&field.kind(), name) {
                let field = field.clone();
                all.push(Break::new(&place, how, move |m| {
                    if let Some(items) = m.get_field_mut(&field).as_list_mut() {
                        items[i] = value.clone();
                    }
                }));
            }
            continue;
        };
        for inner in breaks(&inner) {
            let field = field.clone();
            all.push(inner.within(&place, move |outer, apply| {
                let items = outer.get_field_mut(&field).as_list_mut();
                if let Some(inner) = items.and_then(|items| items[i].as_message_mut()) {
                    apply(inner);
                }
            }));
        }
    }
    all
}

fn of_map(good: &DynamicMessage, field: &FieldDescriptor) -> Vec<Break> {
    let mut all = Vec::new();
    let entries = good.get_field(field).as_map().cloned().unwrap_or_default();
    let (name, mut keys) = (field.name(), entries.keys().cloned().collect::<Vec<_>>());
    keys.sort_unstable();
    let Some(value) = keys.first().and_then(|key| entries.get(key)).cloned() else { return all };
    let of = field.clone();
    all.push(Break::new(name, "none", move |m| m.clear_field(&of)));
    let (of, item) = (field.clone(), value.clone());
    all.push(Break::new(name, "many", move |m| {
        let many = (0..MANY_ENTRIES).map(|n| (MapKey::String(format!("k{n}")), item.clone()));
        m.set_field(&of, Value::Map(many.collect()));
    }));
    for (how, key) in texts() {
        let (of, item) = (field.clone(), value.clone());
        all.push(Break::new(&format!("{name}[]"), how, move |m| {
            let entry = (MapKey::String(key.clone()), item.clone());
            m.set_field(&of, Value::Map([entry].into()));
        }));
    }
    for key in keys {
        let place = format!("{name}[{}]", key.as_str().unwrap_or_default());
        let Some(value) = entries.get(&key) else { continue };
        let Value::Message(inner) = value else {
            let kind = field.kind().as_message().map(MessageDescriptor::map_entry_value_field);
            for (how, value) in kind.map(|f| values(&f.kind(), name)).unwrap_or_default() {
                let (of, key) = (field.clone(), key.clone());
                all.push(Break::new(&place, how, move |m| {
                    if let Some(entries) = m.get_field_mut(&of).as_map_mut() {
                        entries.insert(key.clone(), value.clone());
                    }
                }));
            }
            continue;
        };
        for inner in breaks(inner) {
            let (of, key) = (field.clone(), key.clone());
            all.push(inner.within(&place, move |outer, apply| {
                let entries = outer.get_field_mut(&of).as_map_mut();
                if let Some(inner) = entries.and_then(|e| e.get_mut(&key)?.as_message_mut()) {
                    apply(inner);
                }
            }));
        }
    }
    all
}

/// Values that a field of this kind may not be made for.
fn values(kind: &Kind, name: &str) -> Vec<(&'static str, Value)> {
    let all = |values: &[(&'static str, Value)]| values.to_vec();
    match kind {
        Kind::String => texts().into_iter().map(|(how, text)| (how, Value::String(text))).collect(),
        Kind::Bytes => [("empty", 0), ("middling", MIDDLING), ("large", LARGE)]
            .map(|(how, size)| (how, Value::Bytes(vec![b' '; size].into())))
            .into(),
        Kind::Bool => all(&[("flipped", Value::Bool(true))]),
        Kind::Enum(_) => [("unspecified", 0), ("unknown", 999), ("negative", -1)]
            .map(|(how, number)| (how, Value::EnumNumber(number)))
            .into(),
        Kind::Double => [
            ("nan", f64::NAN),
            ("infinite", f64::INFINITY),
            ("-infinite", f64::NEG_INFINITY),
            ("negative", -1.0),
            ("zero", 0.0),
            ("half", 0.5),
            ("least", f64::from_bits(1)),
            ("most", f64::MAX),
        ]
        .map(|(how, number)| (how, Value::F64(number)))
        .into(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => all(&[
            ("zero", Value::I32(0)),
            ("negative", Value::I32(-1)),
            ("least", Value::I32(i32::MIN)),
            ("most", Value::I32(i32::MAX)),
        ]),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => all(&[
            ("zero", Value::I64(0)),
            ("negative", Value::I64(-1)),
            ("least", Value::I64(i64::MIN)),
            ("most", Value::I64(i64::MAX)),
        ]),
        Kind::Uint32 | Kind::Fixed32 => {
            all(&[("zero", Value::U32(0)), ("half", Value::U32(1 << 31)), ("most", Value::U32(u32::MAX))])
        }
        Kind::Uint64 | Kind::Fixed64 => {
            all(&[("zero", Value::U64(0)), ("half", Value::U64(1 << 63)), ("most", Value::U64(u64::MAX))])
        }
        Kind::Message(descriptor) => of_message(descriptor, name),
        Kind::Float => Vec::new(),
    }
}

fn texts() -> Vec<(&'static str, String)> {
    let all = [
        ("empty", String::new()),
        ("long", "x".repeat(256)),
        ("huge", "x".repeat(HUGE)),
        ("nul", "a\0b".to_owned()),
        ("line", "a\nb".to_owned()),
        ("dots", "../x".to_owned()),
        ("percent", "%00".to_owned()),
        ("rtl", "\u{202e}abc".to_owned()),
        ("accent", "naïve".to_owned()),
        ("space", " a".to_owned()),
    ];
    all.into()
}

fn of_message(descriptor: &MessageDescriptor, name: &str) -> Vec<(&'static str, Value)> {
    let parts = |seconds: i64, nanos: i32| {
        let mut message = DynamicMessage::new(descriptor.clone());
        message.set_field_by_name("seconds", Value::I64(seconds));
        message.set_field_by_name("nanos", Value::I32(nanos));
        Value::Message(message)
    };
    match (descriptor.full_name(), name) {
        ("google.protobuf.Duration", _) => [
            ("zero", (0, 0)),
            ("negative", (-1, 0)),
            ("nanos negative", (1, -1)),
            ("nanos many", (0, 2_000_000_000)),
            ("10,000 years", (10_000 * 366 * 86_400, 0)),
            ("least", (i64::MIN, i32::MIN)),
            ("most", (i64::MAX, 999_999_999)),
        ]
        .map(|(how, (seconds, nanos))| (how, parts(seconds, nanos)))
        .into(),
        ("google.protobuf.Timestamp", _) => [
            ("year 0", (YEAR_0, 0)),
            ("year 10000", (YEAR_10000, 0)),
            ("nanos negative", (1, -1)),
            ("nanos many", (1, 2_000_000_000)),
            ("least", (i64::MIN, i32::MIN)),
            ("most", (i64::MAX, 999_999_999)),
        ]
        .map(|(how, (seconds, nanos))| (how, parts(seconds, nanos)))
        .into(),
        ("everstep.history.v1.Failure", "cause") => {
            [("8 deep", 8), ("60 deep", 60)].map(|(how, depth)| (how, causes(descriptor, depth))).into()
        }
        _ => vec![("default", Value::Message(DynamicMessage::new(descriptor.clone())))],
    }
}

/// A chain of so many causes.
fn causes(failure: &MessageDescriptor, depth: usize) -> Value {
    let link = |cause: Option<DynamicMessage>| {
        let mut link = DynamicMessage::new(failure.clone());
        link.set_field_by_name("kind", Value::String("Io".to_owned()));
        cause.into_iter().for_each(|cause| link.set_field_by_name("cause", Value::Message(cause)));
        link
    };
    Value::Message((1..depth).fold(link(None), |cause, _| link(Some(cause))))
}
