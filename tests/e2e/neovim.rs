//! A real Neovim, 0.12 or newer: open a file, type, see ghost text, accept it. Skipped with a printed reason where there is none.

use crate::session::{SAMPLES, all_offered, sample_cuts};
use anyhow::{Context, Result, ensure};
use multicoder_tests::program::{language_server, run};
use multicoder_tests::{repository_root, skipped};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A file, and what is typed below it.
struct Scene {
    file_name: String,
    text: String,
    typed: String,
}

/// Places at which a reader knows what comes next: file name, its text, what is typed below it.
const SIMPLE_SCENES: [(&str, &str, &str); 6] = [
    (
        "point.py",
        "class Point:\n    def __init__(self, x, y, z):\n        self.x = x\n        self.y = y\n",
        "        self.z =",
    ),
    ("shape.rs", "use std::path::Path;\nuse std::fs;\n", "#[derive("),
    ("lines.py", "import os\n\n\ndef main():\n    pass\n\n\n", "if __name__ =="),
    ("loop.c", "#include <stdio.h>\n\nint sum(int *v, int n) {\n    int s = 0;\n", "    for (int i = 0;"),
    ("list.js", "const a = [1, 2, 3];\nconsole.log(a);\nconst b = [4, 5];\n", "console."),
    ("error.go", "package main\n\nfunc f() error {\n\tx, err := g()\n", "if err !="),
];

/// The simple scenes, then the lines of the samples. A tab cannot be typed: it accepts.
fn scenes() -> Result<Vec<Scene>> {
    let scene = |file_name: &str, text: String, typed: String| Scene { file_name: file_name.to_owned(), text, typed };
    let simple = SIMPLE_SCENES.iter().map(|(name, text, typed)| scene(name, (*text).to_owned(), (*typed).to_owned()));
    let mut scenes: Vec<Scene> = simple.collect();
    for (name, _) in SAMPLES {
        let cuts = sample_cuts(name)?.into_iter().filter(|(before, typed)| !before.is_empty() && !typed.contains('\t'));
        scenes.extend(cuts.map(|(before, typed)| scene(name, before, typed)));
    }
    Ok(scenes)
}

/// The first scene at which the model has an answer, likely or not, by asking it from the shell. The file holds the scene's text.
fn answered_scene(folder: &Path) -> Result<Scene> {
    let scenes = scenes()?;
    let n_scenes = scenes.len();
    for scene in scenes {
        let file = folder.join(&scene.file_name);
        let (line, column) = (scene.text.lines().count() + 1, scene.typed.chars().count() + 1);
        std::fs::write(&file, format!("{}{}\n", scene.text, scene.typed))?;
        let place = format!("{}:{line}:{column}", file.display());
        let answer = run(language_server()?.args(["complete", "--json", &place]), Duration::from_secs(60))?.stdout;
        let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        std::fs::write(&file, &scene.text)?;
        if answer["text"].is_string() {
            return Ok(scene);
        }
        println!("{}: {answer}", scene.file_name);
    }
    anyhow::bail!("the model has no answer at any of {n_scenes} places")
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
    command.env("MULTICODER_OPTIONS", all_offered().to_string());
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
    let scene = answered_scene(home.path())?;
    let mut command = neovim(&program, home.path())?;
    command.env("MULTICODER_FILE", home.path().join(&scene.file_name)).env("MULTICODER_TYPED", &scene.typed);
    let output = run(&mut command, Duration::from_secs(180))?;
    ensure!(output.code == Some(0), "the script failed: {}", output.stderr);
    let seen: Value = serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())?;
    println!("Neovim showed {} and held {}", seen["ghost"], seen["accepted"]);
    check_acceptance(&seen, &scene.typed)?;
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
