//! How the adapter behaves.

use std::path::PathBuf;
use std::time::Duration;

/// Options of [`NatsDispatch::connect`](crate::NatsDispatch::connect). The defaults suit production.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// Name of the JetStream stream. All nodes of a deployment use the same. Default `EVERSTEP_TASKS`.
    pub stream: String,
    /// First word of all subjects: `<prefix>.task.<namespace>.<queue>` and `<prefix>.notice`. Deployments
    /// that share a NATS account need different prefixes and streams. Default `everstep`.
    pub subject_prefix: String,
    /// Copies of the stream in a NATS cluster. Default 1: what is lost is published again.
    pub replicas: usize,
    /// How long an untaken hint is kept. Default 1 h.
    pub age_max: Duration,
    /// Hints in the stream beyond which the oldest are dropped. Default 1 000 000.
    pub messages_max: i64,
    /// How long after its delivery an unacknowledged hint comes again. Default 10 s.
    pub ack_wait: Duration,
    /// Deliveries of one hint, after which it is left to the sweep. Default 5.
    pub deliveries_max: i64,
    /// Limit on connecting at the start. Default 5 s.
    pub connect_timeout: Duration,
    /// Limit on a JetStream request. Default 5 s.
    pub request_timeout: Duration,
    /// Limit on publishing one hint. Default 2 s.
    pub publish_timeout: Duration,
    /// A `.creds` file, where the server uses JWT and nkeys.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) to trust besides the system's, for `tls://` addresses.
    pub ca_file: Option<PathBuf>,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            stream: "EVERSTEP_TASKS".to_owned(),
            subject_prefix: "everstep".to_owned(),
            replicas: 1,
            age_max: Duration::from_secs(3_600),
            messages_max: 1_000_000,
            ack_wait: Duration::from_secs(10),
            deliveries_max: 5,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(2),
            credentials_file: None,
            ca_file: None,
        }
    }
}
