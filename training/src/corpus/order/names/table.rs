//! The table of how languages import: one row a family of languages whose files import each other.

/// Languages whose files import each other, and how they write it.
pub(in crate::corpus::order) struct Family {
    /// By the names of the table of languages.
    pub(in crate::corpus::order) languages: &'static [&'static str],
    pub(super) statements: &'static [Statement],
    /// How many parts at the end of a name may be names inside a file: classes, functions.
    pub(in crate::corpus::order) n_members: usize,
    /// Files that stand for their folder, without extension.
    pub(in crate::corpus::order) folder_files: &'static [&'static str],
    /// Whether a name may mean all files of a folder.
    pub(in crate::corpus::order) imports_folders: bool,
    /// Whether a name has its file's extension, so that `x.h` is not `x.c`.
    pub(in crate::corpus::order) keeps_extension: bool,
    /// Whether a name in quotes means a file of the package only when it begins with a dot: others are packages.
    pub(super) dots_only: bool,
    /// Whether the outer folders come first where several have what a name says, or the file's own.
    pub(in crate::corpus::order) from_the_top: bool,
}

/// What begins a statement that imports, and how the names after it are written.
pub(super) struct Statement {
    pub(super) opening: &'static str,
    pub(super) names: Names,
}

/// How names are written; the text is what divides their parts. Words, bare paths and Python's `from` stand at the beginning of a line.
pub(super) enum Names {
    /// In quotes, on the line or in the parentheses that follow.
    Quoted(&'static str),
    /// Words, several after commas or in braces: `a.b`, `a::{b, c}`.
    Words(&'static str),
    /// Words with such a divider, anywhere in the parentheses that follow.
    Listed(&'static str),
    /// `from a.b import c, d`.
    PythonFrom,
    /// The first word of the line that looks like a file's path.
    Bare,
    /// The capitalised word before the opening: `Wire.make`.
    Capital,
}

const fn quoted(opening: &'static str) -> Statement {
    Statement { opening, names: Names::Quoted("/") }
}

const fn dotted(opening: &'static str) -> Statement {
    Statement { opening, names: Names::Words(".") }
}

const fn words(opening: &'static str, divider: &'static str) -> Statement {
    Statement { opening, names: Names::Words(divider) }
}

const fn bare(opening: &'static str) -> Statement {
    Statement { opening, names: Names::Bare }
}

/// A row without peculiarities; those that have some change it.
const fn family(languages: &'static [&'static str], statements: &'static [Statement]) -> Family {
    Family {
        languages,
        statements,
        n_members: 0,
        folder_files: &[],
        imports_folders: false,
        keeps_extension: false,
        dots_only: false,
        from_the_top: false,
    }
}

const INCLUDE: &[Statement] = &[quoted("#include"), quoted("# include"), quoted("#import")];
const RUST: &[Statement] = &[
    words("mod ", "mod"),
    words("pub mod ", "mod"),
    words("pub(crate) mod ", "mod"),
    words("pub(super) mod ", "mod"),
    words("use ", "::"),
    words("pub use ", "::"),
    words("pub(crate) use ", "::"),
    words("pub(super) use ", "::"),
];
const ELIXIR: &[Statement] = &[dotted("alias "), dotted("import "), dotted("use "), dotted("require ")];
const PHP: &[Statement] = &[quoted("require"), quoted("include"), words("use ", "\\"), words("use function ", "\\")];
const ML: &[Statement] = &[dotted("open "), dotted("include "), Statement { opening: ".", names: Names::Capital }];
const PROLOG: &[Statement] = &[
    words(":- use_module(", "/"),
    words(":- ensure_loaded(", "/"),
    words(":- consult(", "/"),
    words(":- include(", "/"),
    words(":- [", "/"),
];
const PERL: &[Statement] = &[
    words("use ", "::"),
    words("require ", "::"),
    quoted("require"),
    quoted("do"),
    Statement { opening: "use parent", names: Names::Quoted("::") },
    Statement { opening: "use base", names: Names::Quoted("::") },
];
const LUA: &[Statement] = &[Statement { opening: "require", names: Names::Quoted(".") }, quoted("dofile")];
const SCRIPT: &[&str] = &["javascript", "typescript", "tsx", "coffeescript", "vue", "svelte"];
const STYLE: &[Statement] = &[quoted("@import"), quoted("@use"), quoted("@forward")];

/// Every family; a language that stands in no row imports nothing that a line tells.
#[rustfmt::skip]
pub(in crate::corpus::order) const FAMILIES: &[Family] = &[
    Family { n_members: 1, folder_files: &["__init__"], from_the_top: true,
        ..family(&["python"], &[dotted("import "), Statement { opening: "from ", names: Names::PythonFrom }]) },
    Family { folder_files: &["index"], dots_only: true,
        ..family(SCRIPT, &[quoted("from"), quoted("import"), quoted("require")]) },
    Family { keeps_extension: true, ..family(&["c", "cpp", "objectivec", "cuda", "glsl"], INCLUDE) },
    Family { keeps_extension: true, ..family(&["verilog", "systemverilog"], &[quoted("`include")]) },
    Family { n_members: 2, imports_folders: true,
        ..family(&["java", "kotlin", "scala", "groovy"], &[dotted("import "), dotted("import static ")]) },
    Family { n_members: 1, imports_folders: true,
        ..family(&["csharp", "fsharp", "visualbasic"],
            &[dotted("using "), dotted("using static "), dotted("global using "), dotted("open "), dotted("Imports ")]) },
    Family { imports_folders: true, ..family(&["go"], &[quoted("import")]) },
    Family { n_members: 2, folder_files: &["mod", "lib", "main"], from_the_top: true, ..family(&["rust"], RUST) },
    family(&["ruby", "crystal"], &[quoted("require_relative"), quoted("require"), quoted("load"), quoted("autoload")]),
    Family { folder_files: &["init"], from_the_top: true, ..family(&["lua"], LUA) },
    Family { n_members: 1, ..family(&["php"], PHP) },
    family(&["perl"], PERL),
    family(&["raku"], &[words("use ", "::"), words("need ", "::")]),
    Family { n_members: 1, ..family(&["elixir"], ELIXIR) },
    Family { keeps_extension: true, ..family(&["erlang"], &[quoted("-include("), quoted("-include_lib(")]) },
    family(&["haskell", "purescript"], &[dotted("import "), dotted("import qualified ")]),
    family(&["elm"], &[dotted("import ")]),
    family(&["lean"], &[dotted("import "), dotted("public import ")]),
    Family { n_members: 1, ..family(&["ocaml", "standardml"], ML) },
    family(&["rescript"], ML),
    family(&["r"], &[quoted("source")]),
    family(&["julia"], &[quoted("include")]),
    family(&["zig"], &[quoted("@import")]),
    Family { n_members: 1, folder_files: &["package"], ..family(&["d"], &[dotted("import "), dotted("public import ")]) },
    family(&["nim"], &[words("import", "/"), words("from ", "/"), words("include ", "/")]),
    family(&["solidity"], &[quoted("import"), quoted("from")]),
    family(&["dart"], &[quoted("import"), quoted("export"), quoted("part")]),
    Family { n_members: 1, ..family(&["haxe"], &[dotted("import "), dotted("using ")]) },
    family(&["gleam"], &[words("import ", "/")]),
    Family { imports_folders: true, ..family(&["odin"], &[quoted("import")]) },
    Family { imports_folders: true, ..family(&["vlang"], &[dotted("import ")]) },
    family(&["gdscript"], &[quoted("preload"), quoted("load"), quoted("extends")]),
    family(&["clojure"], &[Statement { opening: "(:require", names: Names::Listed(".") },
        Statement { opening: "(:use", names: Names::Listed(".") }, Statement { opening: "(require", names: Names::Listed(".") }]),
    family(&["racket"], &[quoted("(require"), quoted("(include")]),
    family(&["scheme", "commonlisp"], &[quoted("(load"), quoted("(include")]),
    family(&["emacslisp"], &[words("(require '", "/"), quoted("(load")]),
    family(&["prolog"], PROLOG),
    family(&["bash", "fish"], &[bare("source "), bare(". ")]),
    family(&["powershell"], &[bare(". "), bare("Import-Module "), bare("using module ")]),
    family(&["tcl"], &[bare("source ")]),
    family(&["awk"], &[quoted("@include")]),
    family(&["vimscript"], &[bare("source "), bare("runtime ")]),
    family(&["nix"], &[bare("import ")]),
    family(&["make"], &[bare("include "), bare("-include ")]),
    family(&["assembly"], &[quoted("%include"), quoted(".include"), quoted("include")]),
    Family { n_members: 1, ..family(&["vhdl"], &[dotted("use "), dotted("library ")]) },
    family(&["ada"], &[dotted("with "), dotted("use ")]),
    family(&["pascal"], &[dotted("uses")]),
    family(&["fortran"], &[dotted("use "), quoted("include")]),
    family(&["protobuf", "thrift"], &[quoted("import"), quoted("include")]),
    family(&["graphql"], &[quoted("#import")]),
    family(&["css", "scss", "sass", "less"], STYLE),
    family(&["typst"], &[quoted("#import"), quoted("#include")]),
];
