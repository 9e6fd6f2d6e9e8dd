-- es_release: go on with a stream whose next event was not found in one step.
--
-- KEYS     those of groups.lua    13 events:<stream>
-- ARGV     1 group    2 stream
-- RETURNS  1
-- ERRORS   NOGROUP <name>           there is no such group

local function release_on(keys, args)
  local group = load_group(keys, args[1])
  if not group then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  if redis.call('ZSCORE', keys[TODO], args[2]) then
    release(keys, group, { args[2], '0', events_key(keys, 1) })
  end
  return 1
end

redis.register_function { function_name = 'es_release' .. suffix, callback = release_on, flags = { 'allow-oom' } }
