-- es_drop_consumers: remove consumers that have nothing pending from Redis' own group. Whoever asks again is one again.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2.. consumers
-- RETURNS  how many were removed
-- ERRORS   NOGROUP <name>           there is no such group

local function drop_consumers(keys, args)
  if redis.call('EXISTS', keys[GROUP]) == 0 then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local count = 0
  for i = 2, #args do
    -- With the consumer, its pending entries would go.
    if #redis.call('XPENDING', keys[SOURCE], args[1], '-', '+', 1, args[i]) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', keys[SOURCE], args[1], args[i])
      count = count + 1
    end
  end
  return count
end

redis.register_function { function_name = 'es_drop_consumers' .. suffix, callback = drop_consumers, flags = { 'allow-oom' } }
