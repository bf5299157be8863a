//! Why nothing is shown: one code each, for the log and the status request.

/// The reason for a silence.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Reason {
    /// Switched off by the settings.
    Disabled,
    /// The file matches an excluding pattern.
    ExcludedFile,
    /// The language is switched off.
    DisabledLanguage,
    /// The document is not open.
    NotOpen,
    /// The document is blank.
    NothingToContinue,
    /// Menu items are not offered to an editor that shows inline completions.
    InlineInstead,
    /// No model could be loaded.
    NoModel,
    /// A newer request of the same document took its place.
    Superseded,
    /// The editor withdrew the request.
    Cancelled,
    /// The document changed while the answer was made.
    Stale,
    /// The model had nothing to add.
    Empty,
    /// Nothing but closing brackets and punctuation.
    OnlyClosers,
    /// The text that follows the caret begins so.
    RepeatsFollowing,
    /// The same again and again.
    Repetitive,
    /// Its brackets do not go with those around the caret.
    Unbalanced,
    /// The line did not end within the budget of tokens or time.
    UnfinishedLine,
    /// Less likely than the settings ask for.
    LowConfidence,
    /// The model failed.
    EngineFailed,
    /// The model's code panicked; it goes on with a fresh state.
    EnginePanicked,
    /// The server is ending.
    ShuttingDown,
}

impl Reason {
    /// The code, in snake case.
    pub fn code(self) -> &'static str {
        match self {
            Reason::Disabled => "disabled",
            Reason::ExcludedFile => "excluded_file",
            Reason::DisabledLanguage => "disabled_language",
            Reason::NotOpen => "not_open",
            Reason::NothingToContinue => "nothing_to_continue",
            Reason::InlineInstead => "inline_instead",
            Reason::NoModel => "no_model",
            Reason::Superseded => "superseded",
            Reason::Cancelled => "cancelled",
            Reason::Stale => "stale",
            Reason::Empty => "empty",
            Reason::OnlyClosers => "only_closers",
            Reason::RepeatsFollowing => "repeats_following",
            Reason::Repetitive => "repetitive",
            Reason::Unbalanced => "unbalanced",
            Reason::UnfinishedLine => "unfinished_line",
            Reason::LowConfidence => "low_confidence",
            Reason::EngineFailed => "engine_failed",
            Reason::EnginePanicked => "engine_panicked",
            Reason::ShuttingDown => "shutting_down",
        }
    }
}

/// A silence: its reason, and what is particular to this one (may be empty).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Silence {
    pub reason: Reason,
    pub detail: String,
}

impl From<Reason> for Silence {
    fn from(reason: Reason) -> Silence {
        Silence { reason, detail: String::new() }
    }
}

impl Reason {
    /// A silence for this reason.
    pub fn because(self, detail: impl std::fmt::Display) -> Silence {
        Silence { reason: self, detail: detail.to_string() }
    }
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.reason.code())?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}
