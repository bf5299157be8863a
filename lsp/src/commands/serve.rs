//! The default: serve one editor.

use std::process::ExitCode;

use anyhow::Context;
use multicoder_lsp::model_completer::{self, Choice};
use multicoder_lsp::server;

/// Serves until the editor ends it.
pub(crate) fn run(choice: Choice) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .context("no threads to serve with")?;
    let load = model_completer::loader(choice);
    let ended = runtime.block_on(server::serve(tokio::io::stdin(), tokio::io::stdout(), load));
    let ended = ended.context("no thread for the model")?;
    // The thread that reads the input, and one that generates, may be in the midst of something: nobody waits for them.
    std::process::exit(i32::from(ended.exit_code()));
}
