-- es_delete_group: remove a partition's copy of a consumer group with all that it holds.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 epoch
-- RETURNS  1, or 0 where there is none of this epoch: somebody may have created it anew since
-- ERRORS   none

local function delete_group(keys, args)
  if redis.call('HGET', keys[GROUP], 'epoch') ~= args[2] then
    return 0
  end
  destroy(keys, args[1])
  wake(keys, args[1])
  return 1
end

redis.register_function { function_name = 'es_delete_group' .. suffix, callback = delete_group, flags = { 'allow-oom' } }
