//! How a program in each language is built and run: one row a language.

/// One language's row.
pub struct Toolchain {
    /// Name as in `multicoder_grammars::LANGUAGES`.
    pub language: &'static str,
    /// Name of the file that holds the program.
    pub file: &'static str,
    /// For `sh`, which succeeds where every one of these programs is found.
    pub needs: &'static [&'static str],
    /// For `sh`: builds and runs the file, which lies in `src/`.
    pub script: &'static str,
    /// Stands before every program, so that a failed assertion ends it.
    pub prelude: &'static str,
    /// In place of the tests: fails wherever it is reached.
    pub failing: &'static str,
}

/// Languages whose programs reserve far more memory than they use.
const RESERVING: [&str; 2] = ["java", "javascript"];

const fn row(
    language: &'static str,
    file: &'static str,
    needs: &'static [&'static str],
    script: &'static str,
    prelude: &'static str,
    failing: &'static str,
) -> Toolchain {
    Toolchain { language, file, needs, script, prelude, failing }
}

/// Every language whose programs can be run, by name.
#[rustfmt::skip]
pub static TOOLCHAINS: &[Toolchain] = &[
    row("bash",       "main.sh",   &["bash"],          "bash src/main.sh", "", "exit 1"),
    row("c",          "main.c",    &["cc"],            "cc -o main src/main.c -lm && ./main", "", "#error"),
    row("cpp",        "main.cpp",  &["c++"],           "c++ -std=c++17 -o main src/main.cpp && ./main", "", "#error"),
    row("go",         "main_test.go", &["go"],         "GO111MODULE=off GOFLAGS=-vet=off GOPATH=/usr/share/gocode GOCACHE=$PWD/cache go test -v ./src/main_test.go > out && grep -q '^--- PASS' out", "", "?"),
    row("java",       "Main.java", &["javac", "java"], "javac -cp '/usr/share/java/*' -d . src/Main.java && java -ea -XX:+UseSerialGC -cp '.:/usr/share/java/*' $(ls *.class | grep -xm1 -e Main.class -e Problem.class | cut -d. -f1 | grep . || echo Solution)", "", "?"),
    row("javascript", "main.js",   &["node"],          "node src/main.js", "console.assert = (holds) => { if (!holds) process.exit(1); };\n", "process.exit(1)"),
    row("lua",        "main.lua",  &["lua"],           "lua src/main.lua", "", "os.exit(1)"),
    row("perl",       "main.pl",   &["perl"],          "perl src/main.pl", "", "exit 1;"),
    row("php",        "main.php",  &["php"],           "php -d zend.assertions=1 -d assert.exception=1 src/main.php", "", "exit(1);"),
    row("python",     "main.py",   &["python3"],       "python3 src/main.py", "", "raise SystemExit(1)"),
    row("r",          "main.R",    &["Rscript"],       "Rscript src/main.R", "", "quit(status = 1)"),
    row("ruby",       "main.rb",   &["ruby"],          "ruby src/main.rb", "", "exit 1"),
    row("rust",       "main.rs",   &["rustc", "cc"],   "rustc --edition 2021 --test -o test src/main.rs && ./test && (! grep -q '^\\(pub \\)\\?fn main *(' src/main.rs || (rustc --edition 2021 -o main src/main.rs && ./main))", "", "compile_error!();"),
    row("tcl",        "main.tcl",  &["tclsh"],         "tclsh src/main.tcl", "", "exit 1"),
];

impl Toolchain {
    /// The row of a language.
    pub fn of(language: &str) -> Option<&'static Toolchain> {
        TOOLCHAINS.iter().find(|row| row.language == language)
    }

    /// Whether its programs reserve far more memory than they use.
    pub fn is_reserving(&self) -> bool {
        RESERVING.contains(&self.language)
    }

    /// For `sh`: whether everything is there.
    pub fn probe(&self) -> String {
        self.needs.iter().map(|program| format!("command -v {program}")).collect::<Vec<_>>().join(" && ")
    }
}
