--- A reader and writer for INI files that keeps the order of sections and keys.
local Ini = {}
Ini.__index = Ini

local TRUE_WORDS = { ["true"] = true, yes = true, on = true }
local FALSE_WORDS = { ["false"] = true, no = true, off = true }

function Ini.new()
  return setmetatable({ order = {}, sections = {} }, Ini)
end

local function trim(text)
  return (text:gsub("^%s+", ""):gsub("%s+$", ""))
end

-- Numbers and truth values become what they look like; everything else stays a string.
local function parse_value(text)
  local quoted = text:match('^"(.*)"$')
  if quoted then
    return quoted
  elseif TRUE_WORDS[text:lower()] then
    return true
  elseif FALSE_WORDS[text:lower()] then
    return false
  end
  return tonumber(text) or text
end

function Ini:section(name)
  local section = self.sections[name]
  if not section then
    section = { keys = {}, values = {} }
    self.sections[name] = section
    table.insert(self.order, name)
  end
  return section
end

function Ini:set(name, key, value)
  local section = self:section(name)
  if section.values[key] == nil then
    section.keys[#section.keys + 1] = key
  end
  section.values[key] = value
end

function Ini:get(name, key, default)
  local section = self.sections[name]
  local value = section and section.values[key]
  if value == nil then
    return default
  end
  return value
end

function Ini.parse(text)
  local ini = Ini.new()
  local current = "default"
  local number = 0
  for line in (text .. "\n"):gmatch("(.-)\r?\n") do
    number = number + 1
    line = trim(line)
    if line ~= "" and not line:find("^[;#]") then
      local header = line:match("^%[([^%]]+)%]$")
      local key, value = line:match("^([^=]+)=(.*)$")
      if header then
        current = trim(header)
        ini:section(current)
      elseif key then
        ini:set(current, trim(key), parse_value(trim(value)))
      else
        return nil, ("line %d: expected a section or key = value, found %q"):format(number, line)
      end
    end
  end
  return ini
end

function Ini:__tostring()
  local lines = {}
  for _, name in ipairs(self.order) do
    lines[#lines + 1] = "[" .. name .. "]"
    local section = self.sections[name]
    for _, key in ipairs(section.keys) do
      lines[#lines + 1] = key .. " = " .. tostring(section.values[key])
    end
    lines[#lines + 1] = ""
  end
  return table.concat(lines, "\n")
end

return Ini
