//! The session token: what a worker shows to take up its session again.
//!
//! It names the session and a version of its own form. Knowing it is knowing the session id, which is no
//! secret: workers are not authenticated yet.

use everstep_core::SessionId;

const PREFIX: &str = "s1.";

/// The token of a session.
pub(super) fn of(session: SessionId) -> String {
    format!("{PREFIX}{}", session.uuid().simple())
}

/// The session of a token; `None` when it is not one of ours.
pub(super) fn session(token: &str) -> Option<SessionId> {
    let id = token.strip_prefix(PREFIX)?;
    // Exactly the form that is given out, not everything that reads as a UUID.
    let session: SessionId = id.parse().ok()?;
    (of(session) == token).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_session() {
        let id: SessionId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(session(&of(id)), Some(id));
        let good = of(id);
        let bare = id.to_string();
        let hyphens = format!("{PREFIX}{id}");
        let upper = good.to_uppercase();
        let (cut, long) = (&good[..good.len() - 1], format!("{good}0"));
        for bad in ["", "s1.", &bare, &hyphens, &upper, cut, &long, "s2.01890a5dac96774bbcceb302099a8057"] {
            assert_eq!(session(bad), None, "{bad}");
        }
    }
}
