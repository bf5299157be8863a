-- multicoder in Neovim 0.12 or newer: ghost text while you type, <Tab> accepts it. No plugin.
-- Copy these lines into init.lua; `multicoder-lsp` must be in PATH (`cargo install --path lsp`).
vim.lsp.config("multicoder", { cmd = { "multicoder-lsp" }, root_markers = { ".git" } })
vim.lsp.enable("multicoder")
vim.lsp.inline_completion.enable()
vim.keymap.set("i", "<Tab>", function()
  return vim.lsp.inline_completion.get() and "" or "<Tab>"
end, { expr = true, desc = "Accept the completion" })
