-- library: what the functions share. Joined in front of them; registers nothing.
--
-- Files are joined as this one first, then the functions in order of their names. The engine line and `local suffix`
-- (the first 8 hex digits of the SHA-256 of the joined text) are put before it by src/store/functions.rs.

-- Writes a whole number as plain digits: `..` turns 1e14 into "1e+14", and '%.0f' takes longer than '%d'.
local function digits(number)
  return string.format('%d', number)
end

-- Redis' clock in milliseconds since 1970.
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The value of a field in a flat list of names and values.
local function field(list, name)
  for i = 1, #list, 2 do
    if list[i] == name then
      return list[i + 1]
    end
  end
end

-- The number in the last id that the stream `key` ever gave (XINFO also where entries were removed); nil where the id
-- is not of the form 0-<number>.
local function last_number(key)
  if redis.call('EXISTS', key) == 0 then
    return 0
  end
  local last = field(redis.call('XINFO', 'STREAM', key), 'last-generated-id')
  local number = string.match(last, '^0%-(%d+)$')
  return number and tonumber(number)
end
