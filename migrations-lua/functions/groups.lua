-- groups: what the functions of consumer groups share. Joined behind library.lua; registers nothing.
--
-- Every such function takes these keys first, for one partition:
--   1 source: the log, or events:<stream> where the group has one stream   2 group:<g>, settings and state
--   3 /due, zset position -> ms when its lease ends or its retry is due    4 /lease, hash position -> lease text
--   5 /ready, zset position:version:stream by position                     6 /parked, zset position by position
--   7 /parked/info, hash position -> parked text                           8 /busy, hash stream -> busy text
--   9 /again, zset of replays asked for, in order of stream and position  10 /todo, zset of streams to be released on
--  11 /error, hash position -> the reason of its last nack                12 wake
--
-- Texts:  lease   nonce:count:version:stream         nonce 0: waits for a retry
--         busy    position:from:to:held:block:again  position in flight or ready, 0 where the stream stands; versions in
--                                                    (from, to] were passed over, held of them match; block: parked
--                                                    events that stop it; again: 1 where the position is a replay
--         parked  blocks:version:count:ms:reason:stream, a line break, the reason of its last nack
--                 blocks: the generation in which its stream stands behind it, 0 where it stops nothing
-- Counters in group:<g>, so that the status costs the same for any number: held, waiting (for a retry) and stopped
-- (streams that stand behind a parked event).

local SOURCE, GROUP, DUE, LEASE, READY, PARKED = 1, 2, 3, 4, 5, 6
local PARKED_INFO, BUSY, AGAIN, TODO, ERROR, WAKE = 7, 8, 9, 10, 11, 12
local GROUP_KEYS = 12

local RELEASE_ENTRIES = 100
local RELEASE_BYTES = 256 * 1024
local WAKE_ENTRIES = 1000
local CHORE_LEASE_MS = 5000
local KNOWN_MAX = 1000

local function wake(keys, what)
  redis.call('XADD', keys[WAKE], 'MAXLEN', '~', WAKE_ENTRIES, '*', 'g', what)
end

local function set_of(text)
  if text == '' then
    return nil
  end
  local set = {}
  for word in string.gmatch(text, '[^\n]+') do
    set[word] = true
  end
  return set
end

-- Settings as once read, by revision and stamp: a copy's stamp is new whenever its settings are written, so they need not be
-- read in every call. Kept in memory only, and forgotten all at once when there are too many.
local known, known_count = {}, 0

local function read_settings(keys)
  local values = redis.call('HMGET', keys[GROUP], 'paused', 'overlap', 'ordering', 'lease_ms', 'max_deliveries',
    'max_in_flight', 'on_exhausted', 'categories', 'types', 'stream', 'backoff_ms')
  return {
    paused = values[1] == '1', overlap = tonumber(values[2]), ordered = values[3] == 'stream',
    lease_ms = tonumber(values[4]), max_deliveries = tonumber(values[5]), max_in_flight = tonumber(values[6]),
    park_stream = values[7] == 'park_stream', categories = set_of(values[8]), types = set_of(values[9]),
    stream = values[10] ~= '' and values[10] or nil, backoff = values[11],
  }
end

-- Behind what a group is at, what it was set to.
local function settings_behind(keys, revision, stamp)
  local mark = stamp and revision .. ':' .. stamp
  local behind = mark and known[mark]
  if not behind then
    behind = { __index = read_settings(keys) }
    if known_count >= KNOWN_MAX then
      known, known_count = {}, 0
    end
    if mark then
      known[mark], known_count = behind, known_count + 1
    end
  end
  return behind
end

-- The group's state and settings; nil where there is no such group.
local function load_group(keys, name)
  local values = redis.call('HMGET', keys[GROUP], 'generation', 'revision', 'stamp', 'cursor', 'held', 'asked')
  if not values[1] then
    return nil
  end
  local group = {
    name = name, generation = values[1], cursor = tonumber(values[4]), held = tonumber(values[5]),
    asked = tonumber(values[6] or 0),
  }
  return setmetatable(group, settings_behind(keys, values[2], values[3]))
end

local function matches(group, stream, kind)
  if group.types and not group.types[kind] then
    return false
  end
  return not group.categories or group.categories[string.match(stream, '^[^-]*')] == true
end

local function parse_lease(text)
  local nonce, count, version, stream = string.match(text, '^(%x+):(%d+):(%d+):(.*)$')
  return nonce, tonumber(count), version, stream
end

local function parse_busy(text)
  if not text then
    return nil
  end
  local position, from, to, held, block, again = string.match(text, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d)$')
  return { position = position, from = tonumber(from), to = tonumber(to), held = tonumber(held),
    block = tonumber(block), again = again, stopped = position == '0' and block ~= '0' }
end

local function load_busy(keys, stream)
  return parse_busy(redis.call('HGET', keys[BUSY], stream))
end

local function busy_text(busy)
  return busy.position .. ':' .. digits(busy.from) .. ':' .. digits(busy.to) .. ':' .. digits(busy.held) .. ':' ..
    digits(busy.block) .. ':' .. busy.again
end

local function add_to(keys, counter, change)
  if change ~= 0 then
    redis.call('HINCRBY', keys[GROUP], counter, digits(change))
  end
end

local function save_busy(keys, stream, busy)
  local stopped = busy.position == '0' and busy.block > 0
  if stopped ~= (busy.stopped or false) then
    add_to(keys, 'stopped', stopped and 1 or -1)
    busy.stopped = stopped
  end
  redis.call('HSET', keys[BUSY], stream, busy_text(busy))
end

local function again_member(stream, position, version)
  return stream .. '|' .. string.format('%016.0f', tonumber(position)) .. '|' .. version
end

-- The first replay asked for of a stream: its member, position and version.
local function first_again(keys, stream)
  local member = redis.call('ZRANGEBYLEX', keys[AGAIN], '[' .. stream .. '|', '(' .. stream .. '}', 'LIMIT', 0, 1)[1]
  if member then
    local position, version = string.match(member, '|0*(%d+)|(%d+)$')
    return member, position, version
  end
end

local function make_ready(keys, position, version, stream)
  redis.call('ZADD', keys[READY], position, position .. ':' .. version .. ':' .. stream)
end

-- The first event of (from, to] that the group wants: its version and position. A second answer `true`: not found yet,
-- go on after the version returned.
local function first_wanted(group, events, busy)
  local looked, bytes, version = 0, 0, busy.from
  local piece = group.types and 16 or 1
  while looked < RELEASE_ENTRIES and bytes < RELEASE_BYTES do
    local entries = redis.call('XRANGE', events, '0-' .. digits(version + 1), '0-' .. digits(busy.to), 'COUNT', piece)
    for _, entry in ipairs(entries) do
      version = tonumber(string.match(entry[1], '%d+$'))
      if not group.types or group.types[field(entry[2], 'type')] then
        return version, false, field(entry[2], 'position')
      end
      looked = looked + 1
      bytes = bytes + #field(entry[2], 'data') + #field(entry[2], 'metadata')
    end
    if #entries < piece then
      return busy.to, false
    end
  end
  return version, true
end

-- What is behind `position` in its stream may go on: the first replay asked for, else, unless parked events stop the
-- stream, the first event that was passed over. `events` is the key of the stream's events. True where there is nothing
-- left, so that the stream is busy no more.
local function go_on(keys, group, stream, position, events, busy)
  if not busy or busy.position ~= position then
    return false
  end
  if position == '0' then
    -- Only a stream that stands can be there.
    redis.call('ZREM', keys[TODO], stream)
  end
  local member, next_position, next_version
  if group.replays then
    member, next_position, next_version = first_again(keys, stream)
  end
  if member then
    redis.call('ZREM', keys[AGAIN], member)
    busy.position, busy.again = next_position, '1'
    save_busy(keys, stream, busy)
    make_ready(keys, next_position, next_version, stream)
    wake(keys, group.name)
    return false
  end
  if busy.block > 0 then
    busy.position = '0'
    save_busy(keys, stream, busy)
    return false
  end
  local version, unfinished, found = nil, false, nil
  if busy.from < busy.to then
    version, unfinished, found = first_wanted(group, events, busy)
    busy.from = version
    -- A group of one stream counts in versions.
    found = found and group.stream and digits(version) or found
  end
  if found then
    busy.position, busy.again = found, '0'
    -- One less, and no more than are left where events were removed.
    local held = math.max(math.min(busy.held - 1, busy.to - busy.from), 0)
    add_to(keys, 'held', held - busy.held)
    busy.held = held
    make_ready(keys, found, digits(version), stream)
    wake(keys, group.name)
  elseif unfinished then
    busy.position = '0'
    redis.call('ZADD', keys[TODO], 0, stream)
    wake(keys, group.name)
  else
    add_to(keys, 'held', -busy.held)
    return true
  end
  save_busy(keys, stream, busy)
  return false
end

-- Lets streams go on behind what was settled in them. `settled`: three for each: stream, position, key of its events.
local function release(keys, group, settled)
  if not group.ordered then
    return
  end
  local streams, idle = {}, {}
  for i = 1, #settled, 3 do
    streams[#streams + 1] = settled[i]
  end
  local texts = redis.call('HMGET', keys[BUSY], unpack(streams))
  group.replays = redis.call('ZCARD', keys[AGAIN]) > 0
  for i, stream in ipairs(streams) do
    if go_on(keys, group, stream, settled[3 * i - 1], settled[3 * i], parse_busy(texts[i])) then
      idle[#idle + 1] = stream
    end
  end
  if #idle > 0 then
    redis.call('HDEL', keys[BUSY], unpack(idle))
  end
end

-- Whether a lease still holds, where `current` is what stands for its position: nil if so, 'already' where its event was
-- settled for good, else why it is lost.
local function lost_because(keys, group, generation, position, text, current)
  if generation ~= group.generation then
    return 'sought'
  end
  if current == text then
    return nil
  elseif current then
    return string.sub(current, 1, 2) == '0:' and 'given-back' or 'handed-out-again'
  end
  local _, _, version, stream = parse_lease(text)
  if tonumber(position) > group.cursor then
    return 'not-delivered'
  elseif redis.call('ZSCORE', keys[PARKED], position) then
    return 'parked'
  elseif redis.call('ZSCORE', keys[READY], position .. ':' .. version .. ':' .. stream)
    or redis.call('ZSCORE', keys[AGAIN], again_member(stream, position, version)) then
    return 'given-back'
  end
  local busy = group.ordered and load_busy(keys, stream)
  if busy and tonumber(version) > busy.from and tonumber(version) <= busy.to then
    return 'not-delivered'
  end
  return 'already'
end

-- Whether waiting consumers sleep because too much is in flight: whoever settles then wakes them.
local function is_full(keys, group)
  return redis.call('ZCARD', keys[DUE]) >= group.max_in_flight
end

-- Nobody has these positions in hand any more.
local function forget(keys, group, positions)
  local ids = {}
  for i, position in ipairs(positions) do
    ids[i] = '0-' .. position
  end
  redis.call('XACK', keys[SOURCE], group.name, unpack(ids))
  redis.call('HDEL', keys[LEASE], unpack(positions))
  redis.call('ZREM', keys[DUE], unpack(positions))
end

-- Sets the event of a lease that holds aside. `reason`: exhausted or nack.
local function park(keys, group, position, text, reason, now)
  local _, deliveries, version, stream = parse_lease(text)
  local failure = redis.call('HGET', keys[ERROR], position) or ''
  forget(keys, group, { position })
  redis.call('HDEL', keys[ERROR], position)
  redis.call('ZADD', keys[PARKED], position, position)
  local busy = group.ordered and group.park_stream and load_busy(keys, stream)
  redis.call('HSET', keys[PARKED_INFO], position, (busy and group.generation or '0') .. ':' .. version .. ':' ..
    digits(deliveries) .. ':' .. digits(now) .. ':' .. reason .. ':' .. stream .. '\n' .. failure)
  if busy then
    busy.block = busy.block + 1
    save_busy(keys, stream, busy)
  end
end

-- Leaves an event to the service, under a short lease of its own: should the service die, the next one gets it. `text`:
-- its lease so far.
local function leave_chore(keys, chores, nonce, now, what, position, text)
  text = nonce .. string.sub(text, string.find(text, ':', 1, true), -1)
  redis.call('HSET', keys[LEASE], position, text)
  redis.call('ZADD', keys[DUE], digits(now + CHORE_LEASE_MS), position)
  local at = #chores
  chores[at + 1], chores[at + 2], chores[at + 3] = what, position, text
end

-- How long the retry after `count` deliveries waits, in ms: the list's entry for it, the last one repeats.
local function backoff(group, count)
  local last = 0
  for delay in string.gmatch(group.backoff, '%d+') do
    last = tonumber(delay)
    count = count - 1
    if count == 0 then
      break
    end
  end
  return last
end

-- The leases of a call, from `first` on, where each one holds and none stands twice: positions, texts, indexes; else nil.
local function all_held(keys, args, first, group)
  local positions, texts, indexes, seen, n = {}, {}, {}, {}, 0
  for at = first, #args, 3 do
    local position = args[at + 1]
    if seen[position] or args[at] ~= group.generation then
      return nil
    end
    n = n + 1
    positions[n], texts[n], indexes[n], seen[position] = position, args[at + 2], n, true
  end
  local current = redis.call('HMGET', keys[LEASE], unpack(positions))
  for i = 1, n do
    if current[i] ~= texts[i] then
      return nil
    end
  end
  return positions, texts, indexes
end

-- Judges each lease by itself. A lease that stands twice is judged once.
local function settle_each(keys, args, first, group, act)
  local asked = {}
  for at = first, #args, 3 do
    asked[#asked + 1] = args[at + 1]
  end
  local current = redis.call('HMGET', keys[LEASE], unpack(asked))
  local answers, seen, positions, texts, indexes = {}, {}, {}, {}, {}
  for index, position in ipairs(asked) do
    local generation, text = args[first + 3 * index - 3], args[first + 3 * index - 1]
    local lease = generation .. position .. ':' .. text
    if not seen[lease] then
      if current[index] ~= text then
        -- Judged as if those before it had come in a call of their own.
        if #positions > 0 then
          act(positions, texts, indexes)
          positions, texts, indexes = {}, {}, {}
        end
        current[index] = redis.call('HGET', keys[LEASE], position)
      end
      seen[lease] = lost_because(keys, group, generation, position, text, current[index]) or 'ok'
      if seen[lease] == 'ok' then
        local n = #positions + 1
        positions[n], texts[n], indexes[n] = position, text, index
      end
    end
    answers[index] = seen[lease]
  end
  if #positions > 0 then
    act(positions, texts, indexes)
  end
  return answers
end

-- Judges the leases of an ack, nack or extend, three arguments each (generation, position, lease text) from `first` on,
-- and calls `act` with lists of those that hold: positions, texts, indexes. Answers with 'ok' where all hold, else with a
-- word each: 'ok', 'already', or why the lease is lost.
local function settle(keys, args, first, group, act)
  local positions, texts, indexes = all_held(keys, args, first, group)
  if not positions then
    return settle_each(keys, args, first, group, act)
  end
  act(positions, texts, indexes)
  return 'ok'
end

-- The key of the events of the lease at `index`: behind the group's keys stands one for each lease.
local function events_key(keys, index)
  return keys[GROUP_KEYS + index]
end

-- A parked event is to be replayed or dropped: it is parked no more, and stops nothing. Its stream and version; nil where
-- it is not parked.
local function unpark(keys, group, position)
  local text = redis.call('HGET', keys[PARKED_INFO], position)
  if not text then
    return nil
  end
  redis.call('ZREM', keys[PARKED], position)
  redis.call('HDEL', keys[PARKED_INFO], position)
  local blocks, version, stream = string.match(text, '^(%x+):(%d+):%d+:%d+:%a+:([^\n]*)')
  if blocks == group.generation then
    local busy = load_busy(keys, stream)
    busy.block = busy.block - 1
    save_busy(keys, stream, busy)
  end
  return stream, version
end

-- Removes a group with all that it holds.
local function destroy(keys, name)
  redis.call('XGROUP', 'DESTROY', keys[SOURCE], name)
  for i = GROUP, ERROR do
    redis.call('UNLINK', keys[i])
  end
end
