//! Server addresses: parsed once, with the credentials taken out, so that no log line or error can show
//! them.

use std::fmt;

use async_nats::ServerAddr;
use everstep_dispatch::Error;

use crate::subject::decode_percent;

#[cfg(test)]
mod tests;

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    None,
    Token(String),
    User { name: String, password: String },
}

/// Where to connect to.
pub(crate) struct Address {
    /// The servers, without credentials.
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) login: Login,
}

impl Address {
    /// Parses `nats://[user:password@|token@]host[:port]`, or several of them with commas between.
    ///
    /// # Errors
    /// [`Error::Refused`] that names the problem, never the credentials.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut address = Self { servers: Vec::new(), login: Login::None };
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (server, login) = parse_one(one)?;
            if login != Login::None {
                if address.login != Login::None && address.login != login {
                    return Err(refused("all NATS servers must be given the same credentials"));
                }
                address.login = login;
            }
            address.servers.push(server);
        }
        if address.servers.is_empty() {
            return Err(refused("the NATS address is empty; give one such as nats://localhost:4222"));
        }
        Ok(address)
    }
}

/// Host and port of each server.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

fn refused(problem: &str) -> Error {
    Error::Refused(problem.to_owned())
}

fn parse_one(text: &str) -> Result<(ServerAddr, Login), Error> {
    // The parser's own errors name the problem or the scheme, not the rest of the text.
    let parsed: ServerAddr = text.parse().map_err(|err: std::io::Error| {
        Error::Refused(format!("the NATS address is not valid ({err}); it looks like nats://host:4222"))
    })?;
    if parsed.is_websocket() {
        return Err(refused("WebSocket addresses are not supported; use nats:// or tls://"));
    }
    if parsed.host().is_empty() {
        return Err(refused("the NATS address names no host; it looks like nats://host:4222"));
    }
    let mut url = parsed.into_inner();
    let decode = |text: &str| {
        decode_percent(text).ok_or_else(|| refused("the credentials in the NATS address are not valid UTF-8"))
    };
    let login = match (url.username(), url.password()) {
        ("", None) => Login::None,
        (token, None) => Login::Token(decode(token)?),
        (name, Some(password)) => Login::User { name: decode(name)?, password: decode(password)? },
    };
    // Both setters fail only for addresses without a host.
    if url.set_username("").and_then(|()| url.set_password(None)).is_err() {
        return Err(refused("the NATS address names no host; it looks like nats://host:4222"));
    }
    let server = ServerAddr::from_url(url).map_err(|err| Error::Refused(err.to_string()))?;
    Ok((server, login))
}
