-- Drives a real Neovim as a user does: open a file, type, see ghost text, accept it. Run by tests/e2e/neovim.rs:
--
--     nvim --clean --headless -l tests/e2e/neovim.lua
--
-- MULTICODER_NVIM is the editor to drive, MULTICODER_SNIPPET the configuration under test, MULTICODER_FILE the file to open,
-- MULTICODER_TYPED the text to type, MULTICODER_OPTIONS the initialization options (JSON) that the user adds.
-- Prints one JSON object with what was seen; a failed step ends it with code 1.

local DEADLINE_MS = 60000

local channel = vim.fn.jobstart({ vim.env.MULTICODER_NVIM, "--clean", "--headless", "--embed" }, { rpc = true })
assert(channel > 0, "the editor does not start")

local function lua(code, ...)
  return vim.rpcrequest(channel, "nvim_exec_lua", code, { ... })
end

local function keys(text)
  vim.rpcrequest(channel, "nvim_input", text)
end

local function buffer_lines()
  return vim.rpcrequest(channel, "nvim_buf_get_lines", 0, 0, -1, false)
end

-- The last lines of the editor's own record of the protocol, for the message of a failed step.
local function protocol_log()
  local path = lua("return vim.lsp.log.get_filename()")
  local ok, lines = pcall(vim.fn.readfile, path)
  return ok and table.concat(vim.list_slice(lines, math.max(1, #lines - 20)), "\n") or ""
end

local function wait_for(what, condition)
  local result
  local done = vim.wait(DEADLINE_MS, function()
    result = condition()
    return result ~= nil and result ~= false
  end, 10)
  assert(done, what .. ": not within " .. DEADLINE_MS .. " ms\n" .. protocol_log())
  return result
end

-- Ghost text as the editor holds it: virtual text at the caret, then virtual lines. Nil when there is none.
local function ghost_text()
  return lua([[
    local namespace = vim.api.nvim_get_namespaces()["nvim.lsp.inline_completion"]
    for _, mark in ipairs(namespace and vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true }) or {}) do
      local lines, details = {}, mark[4]
      for _, chunks in ipairs(vim.list_extend({ details.virt_text or {} }, details.virt_lines or {})) do
        lines[#lines + 1] = table.concat(vim.tbl_map(function(chunk) return chunk[1] end, chunks))
      end
      local text = table.concat(lines, "\n")
      if text ~= "" then
        return { text = text, row = mark[2], column = mark[3] }
      end
    end
  ]])
end

local function current(value)
  return value ~= vim.NIL and value or nil
end

local function run()
  vim.rpcrequest(channel, "nvim_command", "set noswapfile noautoindent nosmartindent indentexpr=")
  vim.rpcrequest(channel, "nvim_command", "source " .. vim.env.MULTICODER_SNIPPET)
  lua("vim.lsp.config('multicoder', { init_options = vim.json.decode(...) })", vim.env.MULTICODER_OPTIONS)
  vim.rpcrequest(channel, "nvim_command", "edit " .. vim.env.MULTICODER_FILE)
  -- What is typed is what the buffer gets: the editor adds no indentation, comment leader or line break.
  vim.rpcrequest(channel, "nvim_command", "setlocal noautoindent nosmartindent nocindent indentexpr= formatoptions= textwidth=0")
  wait_for("the server is attached", function()
    return lua("return #vim.lsp.get_clients({ bufnr = 0, name = 'multicoder' }) == 1 and vim.lsp.get_clients()[1].initialized")
  end)
  local seen = { capabilities = lua("return vim.lsp.get_clients()[1].server_capabilities.inlineCompletionProvider") }
  seen.process_id = lua([[
    for _, id in ipairs(vim.api.nvim_get_proc_children(vim.fn.getpid())) do
      local process = vim.api.nvim_get_proc(id)
      if process and process.name:find("multicoder", 1, true) then return id end
    end
  ]])
  seen.before = buffer_lines()

  -- While the model loads the server answers with nothing, and the editor asks again only when something is typed.
  keys("Go")
  local typed = vim.split(vim.env.MULTICODER_TYPED, "")
  for index, character in ipairs(typed) do
    keys(character == "<" and "<lt>" or character)
    vim.wait(index % 8 == 0 and 60 or 20)
  end
  wait_for("the typed text is in the buffer", function()
    local lines = buffer_lines()
    return table.concat(vim.list_slice(lines, #seen.before + 1), "\n") == vim.env.MULTICODER_TYPED
  end)
  local asked_again = vim.uv.now()
  seen.ghost = wait_for("ghost text is shown", function()
    local ghost = current(ghost_text())
    if ghost and ghost.column ~= #vim.env.MULTICODER_TYPED then
      ghost = nil
    end
    if not ghost and vim.uv.now() - asked_again > 1000 then
      asked_again = vim.uv.now()
      keys(" <BS>")
    end
    return ghost
  end)
  seen.cursor = vim.rpcrequest(channel, "nvim_win_get_cursor", 0)
  seen.shown = buffer_lines()

  keys("<Tab>")
  seen.accepted = wait_for("the accepted text is in the buffer", function()
    local lines = buffer_lines()
    return not vim.deep_equal(lines, seen.shown) and lines
  end)
  seen.ghost_after_accept = current(ghost_text())

  keys("<Esc>")
  wait_for("no ghost text outside insert mode", function()
    return current(ghost_text()) == nil
  end)
  keys("u")
  wait_for("one undo takes the insertion back", function()
    return #buffer_lines() <= #seen.shown
  end)
  local log = protocol_log()
  seen.errors = vim.tbl_filter(function(line)
    return line:find("[ERROR]", 1, true) ~= nil and not line:find('"stderr"', 1, true)
  end, vim.split(log, "\n"))
  return seen
end

local ok, seen = pcall(run)
pcall(vim.rpcnotify, channel, "nvim_command", "qall!")
vim.fn.jobwait({ channel }, 5000)
if ok then
  io.stdout:write(vim.json.encode(seen), "\n")
  os.exit(0)
end
io.stderr:write(tostring(seen), "\n")
os.exit(1)
