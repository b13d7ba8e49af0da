//! A store that does not answer is said once, not once per worker and heartbeat.

/// Whether something fails at the moment.
#[derive(Debug, Default)]
pub(super) struct Outage {
    lasting: bool,
}

impl Outage {
    /// It has failed; true when it had not before.
    pub(super) fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.lasting, true)
    }

    /// It has worked; true when it had failed before.
    pub(super) fn ends(&mut self) -> bool {
        std::mem::take(&mut self.lasting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_its_end_too() {
        let mut outage = Outage::default();
        assert!(!outage.ends());
        assert!(outage.begins());
        assert!(!outage.begins());
        assert!(outage.ends());
        assert!(!outage.ends());
        assert!(outage.begins());
    }
}
