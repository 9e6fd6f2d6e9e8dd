-- es_register_group: write a consumer group into the registry, unless somebody else was faster.
--
-- KEYS     1 groups, hash name -> what the registry says, JSON; /revision -> number of the newest change of any group
-- ARGV     1 group    2 what the caller has read, '' for nothing    3 what is to stand there, '' for nothing
--          4 the change's number, one above what the caller has read
-- RETURNS  1 written, 0 where something else stands there by now
-- ERRORS   none

local function register_group(keys, args)
  local current = redis.call('HGET', keys[1], args[1]) or ''
  local revision = tonumber(redis.call('HGET', keys[1], '/revision') or 0)
  if current ~= args[2] or tonumber(args[4]) ~= revision + 1 then
    return 0
  end
  redis.call('HSET', keys[1], '/revision', args[4])
  if args[3] == '' then
    redis.call('HDEL', keys[1], args[1])
  else
    redis.call('HSET', keys[1], args[1], args[3])
  end
  return 1
end

redis.register_function('es_register_group' .. suffix, register_group)
