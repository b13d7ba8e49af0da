//! Task tokens: whoever has one may end one attempt of a queued step, from anywhere.
//!
//! A token names its attempt and proves, with a key that all nodes of a deployment share, that it was given out. So it
//! is checked without a look at the database, and one that was made up is refused like any other text.

use std::sync::Arc;

use everstep_core::{CommandId, OpId, RunId};
use everstep_engine::{Engine, StepKey};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tonic::Status;

use crate::status;

const PREFIX: &str = "t1.";
/// Bytes of proof in a token.
const PROOF_BYTES: usize = 16;
/// What SHA-256 works on at a time.
const BLOCK_BYTES: usize = 64;

/// Makes and reads task tokens of one deployment.
#[derive(Clone, Debug)]
pub(crate) struct TaskTokens {
    secret: [u8; 32],
}

/// The tokens of a deployment, once somebody has asked for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deployment {
    tokens: Arc<OnceCell<TaskTokens>>,
}

impl Deployment {
    pub(crate) async fn tokens(&self, engine: &Engine) -> Result<TaskTokens, Status> {
        let read = async {
            let secret = engine.store().deployment_secret().await.map_err(|e| status::of_store(&e))?;
            Ok::<_, Status>(TaskTokens { secret })
        };
        self.tokens.get_or_try_init(|| read).await.cloned()
    }
}

/// The attempt that a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenOf {
    pub(crate) run: RunId,
    pub(crate) step: OpId,
    pub(crate) attempt: u32,
}

impl TokenOf {
    /// The id of a request's events: it follows from the request id, so that a repeat is the same request.
    pub(super) fn command_id(self, request_id: &str) -> CommandId {
        let Self { run, step, attempt } = self;
        let place = [&step.0.to_be_bytes()[..], &attempt.to_be_bytes()].concat();
        CommandId::derived(&[b"finish", run.as_bytes(), &place, request_id.as_bytes()])
    }
}

impl TaskTokens {
    pub(crate) fn of(&self, key: &StepKey) -> String {
        self.write(TokenOf { run: key.run_id, step: key.step, attempt: key.attempt })
    }

    fn write(&self, of: TokenOf) -> String {
        let proof: String = self.proof(of).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{}.{}.{}.{proof}", of.run.uuid().simple(), of.step.0, of.attempt)
    }

    /// The attempt that the token is for; `None` when it is not one of ours.
    pub(crate) fn read(&self, token: &str) -> Option<TokenOf> {
        let mut parts = token.strip_prefix(PREFIX)?.split('.');
        let (run, step, attempt) = (parts.next()?, parts.next()?, parts.next()?);
        let of = TokenOf {
            run: run.parse().ok()?,
            step: OpId(step.parse().ok()?),
            attempt: attempt.parse().ok()?,
        };
        // The whole text is compared, in a time that does not tell where it differs.
        let good = self.write(of);
        let differs = good.bytes().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        (good.len() == token.len() && differs == 0).then_some(of)
    }

    fn proof(&self, TokenOf { run, step, attempt }: TokenOf) -> [u8; PROOF_BYTES] {
        let text = [&run.as_bytes()[..], &step.0.to_be_bytes(), &attempt.to_be_bytes()].concat();
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(&hmac(&self.secret, &text)[..PROOF_BYTES]);
        proof
    }
}

/// HMAC-SHA256 (RFC 2104), for keys of at most a block.
fn hmac(key: &[u8; 32], text: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_proof_is_an_hmac() {
        // RFC 4231, test case 2: its key is shorter, and the rest of a key reads as zeros.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let hex: String =
            hmac(&key, b"what do ya want for nothing?").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn only_the_very_token_is_read() {
        let tokens = TaskTokens { secret: [7; 32] };
        let of = TokenOf { run: RunId::from_uuid(Uuid::from_u128(9)), step: OpId(3), attempt: 12 };
        let good = tokens.write(of);
        assert_eq!(tokens.read(&good), Some(of));
        assert_eq!(TaskTokens { secret: [8; 32] }.read(&good), None, "of another deployment");
        for i in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[i] = if bad[i] == b'1' { b'2' } else { b'1' };
            assert_eq!(tokens.read(&String::from_utf8(bad).unwrap()), None, "byte {i}");
            assert_eq!(tokens.read(&good[..i]), None, "cut at {i}");
        }
        for bad in [format!("{good}0"), format!("{good}."), good.to_uppercase(), good.replace(".3.", ".03.")]
        {
            assert_eq!(tokens.read(&bad), None, "{bad}");
        }
    }
}
