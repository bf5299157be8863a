//! Every preset resolves to a run that can begin, and a wrong key is refused with the valid ones before anything is written.

use multicoder_tests::program::{Finished, binary, run};
use multicoder_training::config::PRESETS;
use std::process::Command;
use std::time::Duration;

fn train(arguments: &[&str]) -> Finished {
    let program = binary("multicoder").expect("the binary");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program);
    command.arg("train").args(arguments).current_dir(folder.path());
    let finished = run(&mut command, Duration::from_secs(60)).expect("multicoder train");
    let left = std::fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(left, 0, "train {arguments:?} wrote something");
    finished
}

#[test]
fn every_preset_resolves() {
    for (name, _) in PRESETS {
        let finished = train(&["--preset", name, "--dry-run"]);
        assert_eq!(finished.code, Some(0), "{name}: {}", finished.stderr);
        for word in ["[model]", "[data]", "parameters", "FLOP"] {
            assert!(finished.stdout.contains(word), "{name}: --dry-run prints {word}:\n{}", finished.stdout);
        }
    }
}

#[test]
fn a_printed_configuration_resolves_to_itself() {
    for (name, _) in PRESETS {
        let printed = train(&["--preset", name, "--dry-run"]).stdout;
        let configuration: String = printed
            .lines()
            .take_while(|line| !line.contains("parameters"))
            .fold(String::new(), |text, line| text + line + "\n");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &configuration).expect("writing");
        let again = train(&["--config", file.path().to_str().expect("UTF-8"), "--dry-run"]);
        assert_eq!(again.code, Some(0), "{name}: {}\n{configuration}", again.stderr);
        assert_eq!(again.stdout, printed, "{name}");
    }
}

#[test]
fn wrong_settings_are_refused_and_named() {
    let refused = [
        (vec!["--preset", "smoek"], vec!["smoek", "smoke", "starter"]),
        (vec![], vec!["--preset"]),
        (vec!["--preset", "smoke", "--set", "model.d_modle=64"], vec!["d_modle", "d_model"]),
        (vec!["--preset", "smoke", "--set", "no_such.key=1"], vec!["no_such"]),
        (
            vec!["--preset", "smoke", "--set", "model.moe.router.kind=nearest"],
            vec!["nearest", "pl_hard", "pl_shared", "token"],
        ),
        (vec!["--preset", "smoke", "--set", "model.d_model=wide"], vec!["d_model"]),
        (vec!["--preset", "smoke", "--set", "model.n_kv_heads=3"], vec!["n_kv_heads", "3"]),
        (vec!["--preset", "smoke", "--set", "data.fim_frac=1.5"], vec!["fim_frac", "1.5"]),
        (vec!["--preset", "smoke", "--set", "n_steps"], vec!["path=value"]),
        (vec!["--config", "absent.toml"], vec!["absent.toml"]),
        (vec!["--preset", "smoke"], vec!["tokenizer"]),
        (vec!["--preset", "smoke", "--tokenizer", "absent.json"], vec!["absent.json"]),
    ];
    for (arguments, words) in refused {
        let finished = train(&arguments);
        assert_eq!(finished.code, Some(1), "train {arguments:?}: {}", finished.stderr);
        for word in words {
            assert!(finished.stderr.contains(word), "train {arguments:?} names {word}: {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("panicked"), "train {arguments:?}: {}", finished.stderr);
    }
}

#[test]
fn options_on_the_command_line_reach_the_configuration() {
    let finished =
        train(&["--preset", "smoke", "--set", "n_steps=77", "--set", "model.moe.router.kind=token", "--dry-run"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(
        finished.stdout.contains("n_steps = 77") && finished.stdout.contains("kind = \"token\""),
        "{}",
        finished.stdout
    );
}
