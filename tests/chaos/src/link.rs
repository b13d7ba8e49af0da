//! One link of a case, through a proxy that can misbehave.

use everstep_faultproxy::{Handle, Mode, Proxy};

/// A proxied link.
#[derive(Debug)]
pub struct Link {
    name: String,
    proxy: Proxy,
}

impl Link {
    /// Starts a proxy before `port`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(name: &str, mode: Mode, port: u16, seed: u64) -> anyhow::Result<Self> {
        let proxy = Proxy::start(format!("127.0.0.1:{port}"), mode, seed).await?;
        Ok(Self { name: name.to_owned(), proxy })
    }

    /// What it connects.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.proxy.address().port()
    }

    /// Where it listens, as the SDK takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Its rules.
    #[must_use]
    pub fn rules(&self) -> Handle {
        self.proxy.handle()
    }
}
