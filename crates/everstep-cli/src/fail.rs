//! One clear line and an exit code.

use std::process::ExitCode;

use everstep::{ClientError, RunError, WorkerError};

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) struct Fail {
    code: u8,
    message: String,
}

impl Fail {
    /// Exit 1: it was understood and did not work.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// Exit 2: it was not understood.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Exit 3: a server or database cannot be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// The same, and if something was not reachable, what.
    pub(crate) fn at(self, address: &str) -> Self {
        match self.code {
            3 => Self { message: format!("{address}: {}", self.message), ..self },
            _ => self,
        }
    }

    /// Exit 130: Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self { code: 130, message: String::new() }
    }

    /// Prints the line, if there is one, and gives the code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let line: String = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
            crate::out::note(&format!("everstep: {line}"));
        }
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Fail {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Unreachable(_) => Self::unreachable(format!(
                "{error}; is a server running (everstep dev), and is --address right?"
            )),
            ClientError::Address { .. } => Self::usage(error.to_string()),
            ClientError::Refused { reason, message, violations, .. } => {
                let said = |(field, problem): &(String, String)| {
                    Some(format!("{field} {problem}")).filter(|text| !message.contains(text.as_str()))
                };
                let more: Vec<String> =
                    violations.iter().filter_map(said).chain(hint(reason).map(ToOwned::to_owned)).collect();
                let colon = if more.is_empty() { "" } else { ": " };
                Self::refused(format!("{error}{colon}{}", more.join("; ")))
            }
            _ => Self::refused(error.to_string()),
        }
    }
}

/// The command that helps, where there is one.
fn hint(reason: &str) -> Option<&'static str> {
    match reason {
        "ATTRIBUTE_NOT_DECLARED" => Some("see everstep attribute list, and everstep attribute add"),
        "NAMESPACE_NOT_FOUND" => Some("see everstep namespace list, and everstep namespace create"),
        "STEP_NOT_IN_DOUBT" => Some("see everstep step list"),
        _ => None,
    }
}

impl From<RunError> for Fail {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Client(error) => error.into(),
            ended @ (RunError::Ended { .. } | RunError::Continued { .. }) => Self::refused(ended.to_string()),
        }
    }
}

impl From<WorkerError> for Fail {
    fn from(error: WorkerError) -> Self {
        Self::refused(error.to_string())
    }
}

impl From<everstep_store::Error> for Fail {
    fn from(error: everstep_store::Error) -> Self {
        match &error {
            everstep_store::Error::Unavailable(_) => Self::unreachable(error.to_string()),
            _ => Self::refused(error.to_string()),
        }
    }
}

impl From<everstep_engine::Error> for Fail {
    fn from(error: everstep_engine::Error) -> Self {
        Self::refused(error.to_string())
    }
}

impl From<everstep_server::Error> for Fail {
    fn from(error: everstep_server::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::refused(text)
    }
}
