//! Names on the wire: subjects and consumer names that keep any two queues apart, whatever their names hold.

use everstep_dispatch::{Error, HintKind, HintQueue};
use sha2::{Digest, Sha256};

#[cfg(test)]
mod tests;

/// Longest subject that is sent. The server's limit for a whole protocol line is 4096 bytes, and the reply
/// subject of a delivery shares it.
const SUBJECT_BYTES_MAX: usize = 3_000;

/// Subject of a queue's hints.
///
/// # Errors
/// [`Error::Refused`] for names too long for a subject.
pub(crate) fn of_queue(prefix: &str, HintQueue { kind, queue }: &HintQueue) -> Result<String, Error> {
    let mut subject = format!("{prefix}.task.");
    push_token(&mut subject, &queue.namespace);
    subject.push('.');
    push_token(&mut subject, &queue.task_queue);
    match kind {
        HintKind::Run => {}
        // No token of a name follows, so no queue has this subject.
        HintKind::Step => subject.push_str(".step"),
    }
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err(Error::Refused(format!(
            "namespace and queue need a subject of {} bytes, and {SUBJECT_BYTES_MAX} are allowed",
            subject.len()
        )));
    }
    Ok(subject)
}

/// Subject of all hints.
pub(crate) fn of_all_queues(prefix: &str) -> String {
    format!("{prefix}.task.>")
}

/// Subject of notices.
pub(crate) fn of_notices(prefix: &str) -> String {
    format!("{prefix}.notice")
}

/// Name of the consumer that all nodes share for `subject`: a hash, because consumer names are limited to
/// 255 bytes and subjects are not.
pub(crate) fn consumer_of(subject: &str) -> String {
    let mut name = "queue-".to_owned();
    for byte in Sha256::digest(subject.as_bytes()).iter().take(16) {
        push_hex(&mut name, *byte);
    }
    name
}

/// Appends `text` as one subject token: letters, digits, `-` and `_` as they are, all other bytes as `%`
/// and two hex digits, and a lone `%` for the empty text. So no two texts share a token, and dots,
/// wildcards and spaces mean nothing.
fn push_token(subject: &mut String, text: &str) {
    if text.is_empty() {
        subject.push('%');
    }
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            subject.push(char::from(byte));
        } else {
            subject.push('%');
            push_hex(subject, byte);
        }
    }
}

fn push_hex(text: &mut String, byte: u8) {
    for nibble in [byte >> 4, byte & 0xF] {
        text.extend(char::from_digit(u32::from(nibble), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

/// Undoes percent encoding; `None` if the result is not UTF-8. A `%` without two hex digits stands for
/// itself.
pub(crate) fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (hex_value(*high), hex_value(*low))
        {
            bytes.push(high << 4 | low);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
