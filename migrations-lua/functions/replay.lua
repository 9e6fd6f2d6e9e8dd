-- es_replay: hand parked events out again, or drop them. In ordered groups a replayed event comes before newer ones of
-- its stream, and a stream that stood behind it goes on once none of its parked events stops it.
--
-- KEYS     those of groups.lua; in ordered groups then, for each position, events:<stream>
-- ARGV     1 group    2 generation    3 'replay' or 'drop'    4.. positions, in order
-- RETURNS  how many were parked
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

-- A stream in flight, ready or being released takes its replays by itself when its turn comes.
local function is_under_way(keys, busy, stream)
  return busy.position ~= '0' or redis.call('ZSCORE', keys[TODO], stream)
end

-- What is ready, but newer than `position`, waits again as it did before: it was not handed out yet.
local function step_back(keys, busy, stream, position)
  local ready = tonumber(busy.position) > tonumber(position)
    and redis.call('ZRANGEBYSCORE', keys[READY], busy.position, busy.position)[1]
  if not ready then
    return false
  end
  local version = string.match(ready, '^%d+:(%d+):')
  redis.call('ZREM', keys[READY], ready)
  if busy.again == '1' then
    redis.call('ZADD', keys[AGAIN], 0, again_member(stream, busy.position, version))
  else
    busy.from, busy.held = tonumber(version) - 1, busy.held + 1
    add_to(keys, 'held', 1)
  end
  return true
end

local function replay_ordered(keys, stream, version, position)
  local busy = load_busy(keys, stream) or { position = '0', from = 0, to = 0, held = 0, block = 0 }
  if is_under_way(keys, busy, stream) and not step_back(keys, busy, stream, position) then
    redis.call('ZADD', keys[AGAIN], 0, again_member(stream, position, version))
    return
  end
  busy.position, busy.again = position, '1'
  save_busy(keys, stream, busy)
  make_ready(keys, position, version, stream)
end

local function replay(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local count = 0
  for i = 4, #args do
    local position = args[i]
    local stream, version = unpark(keys, group, position)
    if stream then
      count = count + 1
      if args[3] == 'drop' then
        release(keys, group, { stream, '0', events_key(keys, i - 3) })
      elseif tonumber(position) > group.cursor then
        -- It comes by itself.
      elseif group.ordered then
        replay_ordered(keys, stream, version, position)
      else
        make_ready(keys, position, version, stream)
      end
    end
  end
  if count > 0 then
    wake(keys, group.name)
  end
  return count
end

redis.register_function('es_replay' .. suffix, replay)
