-- es_extend: let leases end later.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 lease in ms from now, '' for the group's    3.. three for each lease: generation, position,
--          lease text
-- RETURNS  1 when the leases end now, ms since 1970    2 as es_ack
-- ERRORS   NOGROUP <name>           there is no such group

local function extend(keys, args)
  local group = load_group(keys, args[1])
  if not group then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local deadline = clock() + (args[2] ~= '' and tonumber(args[2]) or group.lease_ms)
  local answers = settle(keys, args, 3, group, function(positions)
    for _, position in ipairs(positions) do
      redis.call('ZADD', keys[DUE], digits(deadline), position)
    end
  end)
  if args[2] ~= '' and tonumber(args[2]) < group.lease_ms then
    -- Those who wait count on no lease to end before one that is handed out now.
    wake(keys, group.name)
  end
  return { deadline, answers }
end

redis.register_function { function_name = 'es_extend' .. suffix, callback = extend, flags = { 'allow-oom' } }
