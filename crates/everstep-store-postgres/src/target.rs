//! The database URL: what is accepted, and how its password stays out of messages.

use std::str::FromStr;

use everstep_store::Error;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// A parsed database URL.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) options: PgConnectOptions,
    secrets: Vec<String>,
}

impl Target {
    /// Parses `url`.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is wrong; the message never repeats the URL.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let refused = |problem: &str| Error::Refused(format!("database URL: {problem}"));
        let url = url.trim();
        if url.is_empty() {
            return Err(refused("it is empty; expected postgres://user:password@host:port/database"));
        }
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| refused("it must begin with postgres:// or postgresql://"))?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let path = rest[authority.len()..].split(['?', '#']).next().unwrap_or_default();
        // The usual slip: the tail of a raw password would become the host or the database name.
        if authority.matches('@').count() > 1 || path.contains('@') {
            return Err(refused(
                "characters of the user name or password such as @ : / % must be percent-encoded (@ is %40, / is %2F)",
            ));
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| {
            refused(&redact(&format!("cannot be parsed ({error})"), &secrets(rest)))
        })?;
        let options = options.application_name("everstep").disable_statement_logging();
        Ok(Self { options, secrets: secrets(rest) })
    }

    /// `message` without the URL's password.
    pub(crate) fn redact(&self, message: &str) -> String {
        redact(message, &self.secrets)
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .finish_non_exhaustive()
    }
}

/// Passwords in what follows the scheme: as written and decoded.
fn secrets(rest: &str) -> Vec<String> {
    let mut raw = Vec::new();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some((user_info, _)) = authority.rsplit_once('@')
        && let Some((_, password)) = user_info.split_once(':')
    {
        raw.push(password.to_owned());
    }
    let query = rest.split_once('?').map(|(_, q)| q).unwrap_or_default();
    raw.extend(query.split('&').filter_map(|pair| pair.strip_prefix("password=")).map(str::to_owned));
    let decoded: Vec<String> = raw.iter().map(|p| percent_decode(p)).collect();
    raw.extend(decoded);
    raw.retain(|p| !p.is_empty());
    raw.sort_by_key(|p| std::cmp::Reverse(p.len()));
    raw.dedup();
    raw
}

fn redact(message: &str, secrets: &[String]) -> String {
    secrets.iter().fold(message.to_owned(), |text, secret| text.replace(secret, "***"))
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
