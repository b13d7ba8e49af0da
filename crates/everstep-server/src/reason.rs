//! The words that say why a call failed: the table behind `docs/errors.md`.

use tonic::Code;

/// Why a call failed, as `google.rpc.ErrorInfo.reason` and `Rejected.reason` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stable word; programs may match on it.
    pub word: &'static str,
    /// The canonical gRPC code that it always comes with.
    pub code: Code,
    /// What has happened.
    pub meaning: &'static str,
    /// What the caller can do about it.
    pub what_to_do: &'static str,
}

/// `grpc-status-details-bin` names this as the home of the reasons.
pub const DOMAIN: &str = "everstep.dev";

macro_rules! reasons {
    ($($word:ident, $code:ident, $meaning:literal, $what_to_do:literal;)+) => {
        $(
            #[doc = $meaning]
            pub(crate) const $word: Reason = Reason {
                word: stringify!($word),
                code: Code::$code,
                meaning: $meaning,
                what_to_do: $what_to_do,
            };
        )+

        /// Every reason, sorted by word.
        pub const REASONS: &[Reason] = &[$($word),+];
    };
}

reasons! {
    ATTRIBUTE_NOT_DECLARED, InvalidArgument,
        "The namespace has no search attribute of this name; the message names the one that is most like it.",
        "Declare it with AddSearchAttributes (`everstep attribute add`), or correct the name.";
    ATTRIBUTE_TYPE_MISMATCH, InvalidArgument,
        "The search attribute is declared with another type, which never changes.",
        "Give a value of the declared type, or declare an attribute of another name.";
    CALLER_SILENT, DeadlineExceeded,
        "A caller of the replay gate sent nothing for 60 s, and not the end of its histories either.",
        "Send the histories one after the other, each with its last piece, and close the stream.";
    CONTENTION, Aborted,
        "Other requests kept winning the race for this run. Nothing was written.",
        "Send the same request again.";
    DEADLINE_EXCEEDED, DeadlineExceeded,
        "The call's deadline, or the server's limit of 65 s, passed first. The request may still be carried out.",
        "Send it again with the same request id and a longer deadline.";
    DISCONNECTED, Unavailable,
        "The node let go of this worker's stream: it read too slowly, or took its session up elsewhere.",
        "Connect again with the session token.";
    FENCED, FailedPrecondition,
        "The run has gone to another worker since; nothing was recorded.",
        "Forget the run.";
    IDEMPOTENCY_MISMATCH, InvalidArgument,
        "The request id was used before with a different request.",
        "Use a new request id for a new request.";
    INTERNAL, Internal,
        "A bug of the server. The event log is untouched or consistent.",
        "Report it with the server's log.";
    INVALID_ARGUMENT, InvalidArgument,
        "A field is missing or holds a value that it may not hold; the field violations say which.",
        "Correct the request.";
    INVALID_COMMANDS, InvalidArgument,
        "A worker's commit contradicts the run; nothing of it was recorded, and the run is given to a worker anew.",
        "Report it as a bug of the SDK. A run whose workers are refused again and again is blocked, and says why.";
    INVALID_DURATION, InvalidArgument,
        "A duration is negative, malformed or out of range.",
        "Give a duration of at most 100 years, such as 90 s.";
    INVALID_FILTER, InvalidArgument,
        "The comparison makes no sense of the search attribute.",
        "Lists of keywords and booleans are compared with EQ and NE only.";
    INVALID_HISTORY, InvalidArgument,
        "A file is not the history of a run, or not all of it; the message says where.",
        "Export the run again; a file of a newer release needs a server of that release.";
    INVALID_ID, InvalidArgument,
        "A name or id is not well formed.",
        "Use 1 to 255 ASCII letters, digits, inner spaces and . _ : @ / + = ~ # , $ ( ) - without '..'; a UUID for a run id.";
    INVALID_MESSAGE, InvalidArgument,
        "The bytes are not the protobuf message that this method takes.",
        "Build the client from the same contract.";
    INVALID_PAGE_TOKEN, InvalidArgument,
        "The page token is not from the response before, for the same filters.",
        "Start again without a page token.";
    INVALID_SESSION_TOKEN, InvalidArgument,
        "The session token is not one that a Welcome gave.",
        "Connect without a session token.";
    INVALID_TIMESTAMP, InvalidArgument,
        "An instant is malformed or not within the years 1 to 9999.",
        "Correct the request.";
    LIMIT_EXCEEDED, ResourceExhausted,
        "Something is larger, or there is more of it, than is allowed; the message names the limit.",
        "Send less, or split it.";
    NAMESPACE_ALREADY_EXISTS, AlreadyExists,
        "A namespace of this name exists.",
        "Use it, or choose another name.";
    NAMESPACE_NOT_FOUND, NotFound,
        "There is no namespace of this name.",
        "Create it, or correct the name.";
    NODE_STOPPING, Unavailable,
        "This node is shutting down; nothing was written.",
        "Send the same request again, to another node or in a moment.";
    NO_WORKER, Unavailable,
        "No worker that has the run's code, or none of the build to check, was connected in time. For an update, code that does not fit the run's history counts as none.",
        "Start a worker for the queue and workflow type, or of the build, that the message names; then ask again.";
    OUTCOME_UNKNOWN, Unavailable,
        "The database went away while the commit was on its way: the request may or may not have been carried out.",
        "Send it again with the same request id: it takes effect once.";
    OVERLOADED, Unavailable,
        "This node has as many calls as it takes at one time.",
        "Send the same request again after a pause.";
    QUERY_FAILED, FailedPrecondition,
        "The run's code refused the query: there is no handler of that name, it failed, or the code does not fit the history.",
        "Read the message; ask for another name, or mend the handler. The run is not harmed.";
    REQUEST_BYTES_EXHAUSTED, ResourceExhausted,
        "The requests that this node is receiving or carrying out take all the memory that it has for them. Nothing was written.",
        "Send the same request again after a pause.";
    RESULT_CONFLICT, AlreadyExists,
        "The attempt of a queued step has ended before, in another way.",
        "Look at the run's steps: somebody else ended it.";
    RUN_ALREADY_ATTACHED, FailedPrecondition,
        "The run has a worker already.",
        "Nothing: the run goes on there.";
    RUN_ALREADY_EXISTS, AlreadyExists,
        "Another run holds the workflow id, and the policies forbid a second one.",
        "Use that run, choose another workflow id, or another reuse or conflict policy.";
    RUN_CLOSED, FailedPrecondition,
        "The run has ended.",
        "Nothing can be sent to it any more: use the run that `successor` names, if it names one, or start a new run.";
    RUN_NOT_FOUND, NotFound,
        "There is no such run in this namespace.",
        "Correct the run id, workflow id or namespace.";
    RUN_NOT_RUNNABLE, FailedPrecondition,
        "The run needs no worker now.",
        "Nothing: it will be handed out when it does.";
    STALE_ATTEMPT, FailedPrecondition,
        "The attempt of a queued step is over: another one is under way, or Everstep ended it.",
        "Stop working on it; what it did counts for nothing.";
    STEP_NOT_FOUND, NotFound,
        "The run has no such queued step.",
        "Correct the step's number.";
    STEP_NOT_IN_DOUBT, FailedPrecondition,
        "The step is not in doubt, or not with this attempt.",
        "Look at the run's steps: somebody else may have resolved it.";
    STORE_CORRUPT, DataLoss,
        "The stored data contradict themselves; the run is stopped and its bytes are kept.",
        "Export the run, look into the server's log, and restore from a backup.";
    STORE_EXHAUSTED, ResourceExhausted,
        "The database is out of disk, memory or connections. Nothing was written.",
        "Give it room, then send the same request again.";
    STORE_UNAVAILABLE, Unavailable,
        "The database cannot be reached. Nothing was written.",
        "Send the same request again after a pause.";
    TASK_TOKEN_INVALID, InvalidArgument,
        "The text is no task token that this deployment gave out.",
        "Use the token of the attempt, unchanged.";
    TIMER_NOT_DUE, FailedPrecondition,
        "The timer's instant has not come.",
        "Wait for it.";
    UNKNOWN_ENUM, InvalidArgument,
        "An enum holds a value that this server does not know.",
        "Correct it, or upgrade the server.";
    UNSEEN_EVENTS, FailedPrecondition,
        "The worker asked to park a run that has events which it has not seen.",
        "Apply them, then decide again.";
    UNSUPPORTED_PROTOCOL, FailedPrecondition,
        "Worker and server have no version of the worker protocol in common.",
        "Upgrade the older one.";
    UPDATE_ABANDONED, FailedPrecondition,
        "The run ended before its code had answered the update, which it had accepted.",
        "Look at the run's history for what was done; start a new run if it has to be done.";
    UPDATE_NOT_FOUND, NotFound,
        "The run has accepted no update of this id.",
        "Send the update, or correct its id.";
    UPDATE_REJECTED, FailedPrecondition,
        "The run's code does not agree to the update: there is no handler of that name, or its check refuses. Nothing was written.",
        "Read the message; correct the update, or send it when the run agrees.";
    WRONG_BUILD, FailedPrecondition,
        "The run belongs to another build, which the worker's build does not continue.",
        "Start a worker of that build, or allow the new one to continue it.";
}
