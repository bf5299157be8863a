#!/usr/bin/env python3
"""Makes the picture of ghost text in the README from a real run: Neovim in a terminal, typed into, with the real server.

    docs/capture.py --file grammars/samples/python.py --line 12 --typed '    return ' --out docs/ghost-text.svg

Starts Neovim (`--nvim`, 0.12 or newer) in a terminal of its own (tmux), has editors/neovim/multicoder.lua as its whole configuration, opens a copy of the
file, opens a new line below `--line` and types. When the server's ghost text is there, the screen is written as SVG; what is shown
is printed. Needs tmux and Python, nothing else. `--server` names the binary (default: target/release/multicoder-lsp).
"""

import argparse
import html
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOREGROUND, BACKGROUND = "#e0e2ea", "#14161b"
# The sixteen colours of a terminal, for programs that use them by number.
PALETTE = (
    "#07080d #ffc0b9 #b3f6c0 #fce094 #a6dbff #ffcaff #8cf8f7 #eef1f8 "
    "#4f5258 #ffc0b9 #b3f6c0 #fce094 #a6dbff #ffcaff #8cf8f7 #eef1f8"
).split()
CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN = 8.43, 18, 14, 14
GHOST = """json_encode(luaeval('(function()
  local namespace = vim.api.nvim_get_namespaces()["nvim.lsp.inline_completion"]
  local marks = namespace and vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true }) or {}
  return marks[1] and marks[1][4].virt_text and marks[1][4].virt_text[1][1] or ""
end)()'))""".replace("\n", " ")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=pathlib.Path, required=True)
    parser.add_argument("--line", type=int, required=True, help="the new line is opened below this one, counted from 1")
    parser.add_argument("--typed", required=True, help="what is typed; \\n is a line end")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--nvim", default=os.environ.get("MULTICODER_NVIM", "nvim"))
    parser.add_argument("--server", type=pathlib.Path, default=ROOT / "target/release/multicoder-lsp")
    parser.add_argument("--model", help="another model than the one in the server")
    parser.add_argument("--columns", type=int, default=84)
    parser.add_argument("--rows", type=int, default=18)
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds to wait for ghost text")
    return parser.parse_args()


class Terminal:
    """Neovim, and a tmux server of our own with one window that shows it."""

    def __init__(self, arguments, folder):
        self.folder, self.nvim = folder, arguments.nvim
        self.socket = folder / "nvim.sock"
        command = [str(arguments.server.resolve())] + (["--model", arguments.model] if arguments.model else [])
        script = folder / "multicoder-lsp"
        script.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in command) + ' "$@"\n')
        script.chmod(0o755)
        copy = folder / arguments.file.name
        shutil.copy(arguments.file, copy)
        # The editor and its screen are two processes: an unpacked Neovim (editors/get-editors.sh) cannot start the second by itself.
        start = [
            arguments.nvim, "-u", str(ROOT / "editors/neovim/multicoder.lua"), "-i", "NONE", "--headless",
            "--listen", str(self.socket), "-c", "set noswapfile laststatus=0 noruler number", copy.name,
        ]
        names = ["HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"]
        environment = os.environ | dict.fromkeys(names, str(folder)) | {"PATH": f"{folder}:{os.environ['PATH']}"}
        self.editor = subprocess.Popen(start, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the editor listens", arguments.deadline, self.socket.exists)
        size = ["-x", str(arguments.columns), "-y", str(arguments.rows)]
        screen = [arguments.nvim, "--clean", "--remote-ui", "--server", str(self.socket)]
        self.tmux("new-session", "-d", *size, *screen, config=True)
        self.tmux("set", "-g", "status", "off")
        self.tmux("resize-window", *size)
        self.evaluate("execute('set termguicolors')")

    def tmux(self, *words, config=False):
        start = ["tmux", "-L", f"capture-{self.folder.name}"] + (["-f", "/dev/null"] if config else [])
        return subprocess.run(start + list(words), check=True, capture_output=True, text=True).stdout

    def evaluate(self, expression):
        command = [self.nvim, "--clean", "--server", str(self.socket), "--remote-expr", expression]
        finished = subprocess.run(command, capture_output=True, text=True)
        return (finished.stdout + finished.stderr).strip() if finished.returncode == 0 else ""

    def type(self, text):
        for character in text:
            self.tmux("send-keys", *(["Enter"] if character == "\n" else ["-l", character]))
            time.sleep(0.03)

    def screen(self):
        """The lines with their colours, without the empty lines below the text, and the cursor's column and row."""
        lines = self.tmux("capture-pane", "-e", "-p").rstrip("\n").split("\n")
        lines = [line for line in lines if re.sub(r"\x1b\[[\d;:]*m", "", line).strip() not in ("~", "-- INSERT --")]
        return lines, [int(n) for n in self.tmux("display", "-p", "#{cursor_x} #{cursor_y}").split()]

    def close(self):
        self.editor.kill()
        subprocess.run(["tmux", "-L", f"capture-{self.folder.name}", "kill-server"], capture_output=True)


def wait_for(what, deadline, condition):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    sys.exit(f"capture: {what}: not within {deadline:.0f} s")


def colour(codes):
    """The colour of `38;2;r;g;b` or `38;5;n`, given what follows the 38, and the codes after it."""
    if codes[0] == 2:
        return "#%02x%02x%02x" % tuple(codes[1:4]), codes[4:]
    number = codes[1]
    if number < 16:
        return PALETTE[number], codes[2:]
    if number >= 232:
        return "#" + 3 * f"{8 + (number - 232) * 10:02x}", codes[2:]
    levels = [0, 95, 135, 175, 215, 255]
    cube = number - 16
    return "#%02x%02x%02x" % (levels[cube // 36], levels[cube // 6 % 6], levels[cube % 6]), codes[2:]


def restyle(style, codes):
    """The style after a terminal's `ESC [ codes m`."""
    while codes:
        code, codes = codes[0], codes[1:]
        if code == 0:
            style = {}
        elif code in (38, 48):
            value, codes = colour(codes)
            style = style | {"foreground" if code == 38 else "background": value}
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style = style | {"foreground": PALETTE[code - 30 if code < 90 else code - 82]}
        elif 40 <= code <= 47:
            style = style | {"background": PALETTE[code - 40]}
        elif code in (39, 49):
            style = {key: value for key, value in style.items() if key != {39: "foreground", 49: "background"}[code]}
        elif code in (1, 3, 7):
            style = style | {{1: "bold", 3: "italic", 7: "reverse"}[code]: True}
    return style


def runs(line):
    """Stretches of one style in a captured line."""
    style = {}
    for part in re.split(r"(\x1b\[[\d;:]*m|\x1b.)", line):
        if part.startswith("\x1b["):
            style = restyle(style, [int(code or 0) for code in re.split("[;:]", part[2:-1])])
        elif part and not part.startswith("\x1b"):
            yield part, style


def svg(lines, columns, cursor):
    width, height = columns * CELL_WIDTH + 2 * MARGIN, len(lines) * LINE_HEIGHT + 3 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT_SIZE}">',
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
    ]
    for row, line in enumerate(lines):
        column, y = 0, 2 * MARGIN + row * LINE_HEIGHT
        for text, style in runs(line):
            x, length = MARGIN + column * CELL_WIDTH, len(text) * CELL_WIDTH
            column += len(text)
            ink, paper = style.get("foreground", FOREGROUND), style.get("background")
            if style.get("reverse"):
                ink, paper = paper or BACKGROUND, ink
            if paper and paper != BACKGROUND:
                out.append(f'<rect x="{x:.1f}" y="{y - 13}" width="{length:.1f}" height="{LINE_HEIGHT}" fill="{paper}"/>')
            if text.strip():
                extra = ' font-weight="bold"' * bool(style.get("bold")) + ' font-style="italic"' * bool(style.get("italic"))
                out.append(
                    f'<text x="{x:.1f}" y="{y}" fill="{ink}" textLength="{length:.1f}" xml:space="preserve"{extra}>'
                    f"{html.escape(text)}</text>"
                )
    x, y = MARGIN + cursor[0] * CELL_WIDTH, 2 * MARGIN + cursor[1] * LINE_HEIGHT - 14
    out.append(f'<rect x="{x - 0.5:.1f}" y="{y}" width="2" height="{LINE_HEIGHT}" fill="{FOREGROUND}"/>')
    return "\n".join(out + ["</svg>", ""])


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(arguments, pathlib.Path(folder))
        try:
            attached = "luaeval('#vim.lsp.get_clients({name=\"multicoder\"}) > 0 and vim.lsp.get_clients()[1].initialized')"
            wait_for("the server is attached", arguments.deadline, lambda: terminal.evaluate(attached) in ("true", "v:true"))
            terminal.type(f"{arguments.line}Gzz0o")
            terminal.evaluate("execute('setlocal indentexpr= noautoindent nosmartindent nocindent')")
            terminal.tmux("send-keys", "C-u")
            terminal.type(arguments.typed.replace("\\n", "\n"))
            ghost = wait_for("ghost text", arguments.deadline, lambda: json.loads(terminal.evaluate(GHOST) or '""'))
            time.sleep(0.3)
            lines, cursor = terminal.screen()
            arguments.out.write_text(svg(lines, arguments.columns, cursor))
            print(f"{arguments.out}: {arguments.file.name}: typed {arguments.typed!r}, shown {ghost!r}")
        finally:
            terminal.close()


if __name__ == "__main__":
    main()
