//! The connection to NATS, and what is known of its health.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use everstep_dispatch::Error;
use tokio::sync::watch;

use crate::address::{Address, Login};
use crate::options::NatsOptions;

/// A dead link is noticed after about two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A connection that reconnects for ever.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Host and port of the servers, for messages.
    pub(crate) servers: String,
    /// Grows with each lost connection.
    disconnects: watch::Receiver<u64>,
    /// Grows whenever messages of subscriptions may have been lost.
    losses: watch::Receiver<u64>,
}

impl Connection {
    /// Connects once.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address that cannot be right, or a server that is too old;
    /// [`Error::Unavailable`] with host and reason if no server answers in time.
    pub(crate) async fn open(url: &str, options: &NatsOptions) -> Result<Self, Error> {
        let address = Address::parse(url)?;
        let servers = address.to_string();
        let (disconnects_tx, disconnects) = watch::channel(0);
        let (losses_tx, losses) = watch::channel(0);
        let name = servers.clone();
        let connect = connect_options(&address.login, options).await?.event_callback(move |event| {
            report(&name, &event, &disconnects_tx, &losses_tx);
            std::future::ready(())
        });
        let connecting = connect.connect(address.servers);
        let client = match tokio::time::timeout(options.connect_timeout, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(err)) => {
                let hint = match err.kind() {
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                        " (check the credentials)"
                    }
                    _ => "",
                };
                return Err(Error::Unavailable(format!("cannot connect to NATS at {servers}: {err}{hint}")));
            }
            Err(_) => {
                let limit = options.connect_timeout;
                let problem = format!("cannot connect to NATS at {servers}: no answer within {limit:?}");
                return Err(Error::Unavailable(problem));
            }
        };
        if !client.is_server_compatible(2, 10, 0) {
            let version = client.server_info().version;
            let problem =
                format!("the NATS server at {servers} is version {version}; 2.10 or newer is needed");
            return Err(Error::Refused(problem));
        }
        Ok(Self { client, servers, disconnects, losses })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// [`Error::Unavailable`] unless the connection is up.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_up() { Ok(()) } else { Err(self.lost()) }
    }

    pub(crate) fn lost(&self) -> Error {
        Error::Unavailable(format!("not connected to NATS at {}", self.servers))
    }

    /// Counts lost connections, from now on.
    pub(crate) fn disconnects(&self) -> watch::Receiver<u64> {
        self.disconnects.clone()
    }

    /// Counts the times when a subscription may have missed messages.
    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        self.losses.clone()
    }
}

async fn connect_options(login: &Login, options: &NatsOptions) -> Result<ConnectOptions, Error> {
    let mut connect = ConnectOptions::new()
        .name("everstep")
        // A node has no use for its own notices.
        .no_echo()
        .ping_interval(PING_INTERVAL)
        .connection_timeout(options.connect_timeout)
        .request_timeout(Some(options.request_timeout))
        .reconnect_delay_callback(reconnect_pause);
    connect = match login.clone() {
        Login::None => connect,
        Login::Token(token) => connect.token(token),
        Login::User { name, password } => connect.user_and_password(name, password),
    };
    if let Some(path) = &options.credentials_file {
        connect = connect.credentials_file(path).await.map_err(|err| {
            Error::Refused(format!("cannot read the NATS credentials file {}: {err}", path.display()))
        })?;
    }
    if let Some(path) = &options.ca_file {
        connect = connect.add_root_certificates(path.clone());
    }
    Ok(connect)
}

/// 0 at first, then 50 ms and twice as long each time, up to [`RECONNECT_PAUSE_MAX`].
fn reconnect_pause(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(2)).unwrap_or(u32::MAX).min(10);
    if attempts <= 1 {
        Duration::ZERO
    } else {
        Duration::from_millis(50).saturating_mul(1 << doublings).min(RECONNECT_PAUSE_MAX)
    }
}

fn report(servers: &str, event: &Event, disconnects: &watch::Sender<u64>, losses: &watch::Sender<u64>) {
    match event {
        Event::Connected => tracing::info!(%servers, "connected to NATS"),
        Event::Disconnected => {
            tracing::warn!(%servers, "lost the connection to NATS");
            disconnects.send_modify(|count| *count += 1);
            losses.send_modify(|count| *count += 1);
        }
        Event::SlowConsumer(_) => {
            tracing::warn!(%servers, "messages from NATS came faster than they were taken; some were dropped");
            losses.send_modify(|count| *count += 1);
        }
        Event::ServerError(error) => tracing::warn!(%servers, %error, "NATS reports an error"),
        Event::ClientError(error) => tracing::warn!(%servers, %error, "trouble with NATS"),
        other => tracing::debug!(%servers, event = %other, "NATS connection event"),
    }
}
