//! A real Neovim, 0.12 or newer: open a file, type, see ghost text, accept it. Skipped with a printed reason where there is none.

use anyhow::{Context, Result, ensure};
use multicoder_tests::program::{language_server, run};
use multicoder_tests::{repository_root, skipped};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A file, and what is typed below it: places at which a reader knows what comes next.
struct Scene {
    file_name: &'static str,
    text: &'static str,
    typed: &'static str,
}

const SCENES: [Scene; 6] = [
    Scene {
        file_name: "point.py",
        text: "class Point:\n    def __init__(self, x, y, z):\n        self.x = x\n        self.y = y\n",
        typed: "        self.z =",
    },
    Scene { file_name: "shape.rs", text: "use std::path::Path;\nuse std::fs;\n", typed: "#[derive(" },
    Scene { file_name: "lines.py", text: "import os\n\n\ndef main():\n    pass\n\n\n", typed: "if __name__ ==" },
    Scene {
        file_name: "loop.c",
        text: "#include <stdio.h>\n\nint sum(int *v, int n) {\n    int s = 0;\n",
        typed: "    for (int i = 0;",
    },
    Scene {
        file_name: "list.js",
        text: "const a = [1, 2, 3];\nconsole.log(a);\nconst b = [4, 5];\n",
        typed: "console.",
    },
    Scene { file_name: "error.go", text: "package main\n\nfunc f() error {\n\tx, err := g()\n", typed: "if err !=" },
];

/// Ghost text is shown from this probability on; scenes must be clearly above it.
const SURE: f64 = 0.3;

/// The first scene of which the model is sure, by asking it from the shell.
fn scene(folder: &Path) -> Result<&'static Scene> {
    for scene in &SCENES {
        let file = folder.join(scene.file_name);
        let (line, column) = (scene.text.lines().count() + 1, scene.typed.chars().count() + 1);
        std::fs::write(&file, format!("{}{}\n", scene.text, scene.typed))?;
        let place = format!("{}:{line}:{column}", file.display());
        let answer = run(language_server()?.args(["complete", "--json", &place]), Duration::from_secs(60))?.stdout;
        let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        std::fs::write(&file, scene.text)?;
        if answer["probability"].as_f64() > Some(SURE) {
            return Ok(scene);
        }
        println!("{}: {answer}", scene.file_name);
    }
    anyhow::bail!("the model is not sure of any of {} simple lines", SCENES.len())
}

/// `MULTICODER_NVIM`, or `nvim` of the search path; `Err` holds the reason why neither will do.
fn find_neovim() -> Result<PathBuf, String> {
    let program = std::env::var_os("MULTICODER_NVIM").map_or_else(|| PathBuf::from("nvim"), PathBuf::from);
    let output = run(Command::new(&program).arg("--version"), Duration::from_secs(20))
        .map_err(|error| format!("{error:#}; .ci/run or editors/get-editors.sh installs Neovim"))?;
    let version = output.stdout.lines().next().unwrap_or_default().to_owned();
    let numbers = version.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.').map(str::parse::<u32>);
    let numbers: Vec<u32> = numbers.map_while(Result::ok).collect();
    let is_new = matches!(numbers[..], [major, minor, ..] if (major, minor) >= (0, 12));
    if is_new { Ok(program) } else { Err(format!("{} is {version}, not 0.12 or newer", program.display())) }
}

/// The editor's whole world in one folder, with the server first in the search path.
fn neovim(program: &Path, home: &Path) -> Result<Command> {
    let mut path = std::ffi::OsString::from(home);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    put_server(&home.join("multicoder-lsp"))?;
    let root = repository_root();
    let mut command = Command::new(program);
    command.args(["--clean", "--headless", "-l"]).arg(root.join("tests/e2e/neovim.lua")).current_dir(home);
    for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
        command.env(variable, home);
    }
    command.env("PATH", path).env("MULTICODER_NVIM", program);
    command.env("MULTICODER_SNIPPET", root.join("editors/neovim/multicoder.lua"));
    Ok(command)
}

/// A program at `path` that starts the server under test, with its model.
fn put_server(path: &Path) -> Result<()> {
    let server = language_server()?;
    let words = std::iter::once(server.get_program()).chain(server.get_args()).map(|word| word.to_string_lossy());
    let words: Vec<String> = words.map(|word| format!("'{word}'")).collect();
    std::fs::write(path, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

fn lines(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

#[test]
fn ghost_text_is_shown_and_accepted() -> Result<()> {
    let program = match find_neovim() {
        Ok(program) => program,
        Err(reason) => {
            skipped("neovim: ghost_text_is_shown_and_accepted", &reason);
            return Ok(());
        }
    };
    let home = tempfile::tempdir()?;
    let scene = scene(home.path())?;
    let mut command = neovim(&program, home.path())?;
    command.env("MULTICODER_FILE", home.path().join(scene.file_name)).env("MULTICODER_TYPED", scene.typed);
    let output = run(&mut command, Duration::from_secs(180))?;
    ensure!(output.code == Some(0), "the script failed: {}", output.stderr);
    let seen: Value = serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())?;
    println!("Neovim showed {} and held {}", seen["ghost"], seen["accepted"]);
    check_acceptance(&seen, scene.typed)?;
    check_server_has_ended(&seen)
}

/// The buffer after acceptance is the typed text with the ghost text where it was shown.
fn check_acceptance(seen: &Value, typed: &str) -> Result<()> {
    let ghost = seen["ghost"]["text"].as_str().context("ghost text")?;
    let typed_row = lines(&seen["before"]).len();
    ensure!(
        seen["ghost"]["row"].as_u64() == Some(typed_row as u64),
        "the ghost stands in the typed line: {}",
        seen["ghost"]
    );
    ensure!(
        seen["ghost"]["column"].as_u64() == Some(typed.len() as u64),
        "the ghost stands at the caret: {}",
        seen["ghost"]
    );
    let expected = format!("{}\n{typed}{ghost}", lines(&seen["before"]).join("\n"));
    let accepted = lines(&seen["accepted"]).join("\n");
    ensure!(accepted == expected, "the buffer is\n{accepted}\nnot\n{expected}");
    ensure!(seen["errors"].as_array().is_none_or(Vec::is_empty), "the editor logged {}", seen["errors"]);
    Ok(())
}

/// The server ends when its editor does.
fn check_server_has_ended(seen: &Value) -> Result<()> {
    let id = seen["process_id"].as_u64().context("the server was a child of the editor")?;
    let started = Instant::now();
    let command = PathBuf::from(format!("/proc/{id}/comm"));
    while std::fs::read_to_string(&command).is_ok_and(|name| name.starts_with("multicoder")) {
        ensure!(started.elapsed() < Duration::from_secs(5), "server {id} lives on after its editor");
        std::thread::yield_now();
    }
    Ok(())
}
