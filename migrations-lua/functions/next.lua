-- es_next: hand out events to consumers, each with a lease. Due retries and expired leases first, then what was released,
-- then new ones. Consumers that ask at the same time share a call: what there is goes to the first one until it has what
-- it wants, then to the second, and so on.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 generation    3 nonce, 16 hex digits, new for every call
--          4 most entries to look at, of all kinds together; no more events than that are handed out
--          5.. two for each one who asks: consumer, most events
-- RETURNS  1 'more' (ask again at once), 'head' (nothing more by now), 'full' (max_in_flight is reached), 'paused'
--          2 when the next lease ends or retry is due, ms since 1970; 0 where none waits    3 Redis' clock, likewise
--          4 when the leases of this call end, likewise    5 how many events each one gets, in the order of asking
--          6 two for each event: position, lease text
--          7 three for each chore: 'exhausted' or 'gone', position, lease text; or 'release', stream, ''
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

local ASKED_MS = 10000
-- From so many entries on, reading them once more is cheaper than to claim each.
local RUN = 4

-- What is handed out, or left to the service, takes a place; the places up to `ends[i]` are those of the first i consumers.
local function new_call(keys, args, group)
  local now, look, limit, consumers, ends, counts = clock(), tonumber(args[4]), 0, {}, {}, {}
  for at = 5, #args, 2 do
    limit = math.min(limit + tonumber(args[at + 1]), look)
    local n = #consumers + 1
    consumers[n], ends[n], counts[n] = args[at], limit, 0
  end
  return {
    keys = keys, group = group, consumers = consumers, ends = ends, counts = counts, limit = limit, nonce = args[3],
    first = args[3] .. ':1:', now = now, look = look, deadline = now + group.lease_ms, events = {}, chores = {},
    handed = 0, whose = 1,
  }
end

-- The number of the consumer whose the next place is.
local function next_one(call)
  local whose, ends = call.whose, call.ends
  while ends[whose] <= call.handed do
    whose = whose + 1
  end
  call.whose = whose
  return whose
end

-- Notes an event as handed out. What is noted is written by `write_leases`.
local function hand_out(call, position, count, version, stream)
  local events, counts, whose = call.events, call.counts, next_one(call)
  local n = #events
  events[n + 1] = position
  events[n + 2] = (count == 1 and call.first or call.nonce .. ':' .. digits(count) .. ':') .. version .. ':' .. stream
  counts[whose] = counts[whose] + 1
  call.handed = call.handed + 1
end

local function leave(call, what, position, text)
  leave_chore(call.keys, call.chores, call.nonce, call.now, what, position, text)
  call.handed = call.handed + 1
end

-- Calls `act` with each consumer that gets some of the `count` places behind the first `from`, and the numbers, from 1
-- on, of the first and the last that it gets. Ends where `act` answers `false`.
local function each_part(call, from, count, act)
  local whose, first = 1, 1
  while first <= count do
    while call.ends[whose] < from + first do
      whose = whose + 1
    end
    local last = math.min(count, call.ends[whose] - from)
    if act(call.consumers[whose], first, last) == false then
      return
    end
    first = last + 1
  end
end

-- Makes entries of the source pending for a consumer, as delivered so often: those from number `first` to `last` of
-- `ids`. The ids of those that are there.
local function claim(call, consumer, ids, first, last, count)
  local arguments = { 'XCLAIM', call.keys[SOURCE], call.group.name, consumer, 0 }
  for i = first, last do
    arguments[i - first + 6] = ids[i]
  end
  local n = #arguments
  arguments[n + 1], arguments[n + 2], arguments[n + 3], arguments[n + 4] = 'FORCE', 'JUSTID', 'RETRYCOUNT', count
  return redis.call(unpack(arguments))
end

local function take_due(call)
  local due = redis.call('ZRANGEBYSCORE', call.keys[DUE], '-inf', digits(call.now), 'LIMIT', 0, call.limit)
  local retried = 0
  for _, position in ipairs(due) do
    local text = redis.call('HGET', call.keys[LEASE], position)
    local nonce, count, version, stream = parse_lease(text)
    retried = retried + (nonce == '0' and 1 or 0)
    if count >= call.group.max_deliveries then
      leave(call, 'exhausted', position, text)
    elseif #claim(call, call.consumers[next_one(call)], { '0-' .. position }, 1, 1, count + 1) > 0 then
      hand_out(call, position, count + 1, version, stream)
    else
      leave(call, 'gone', position, text)
    end
  end
  if retried > 0 then
    add_to(call.keys, 'waiting', -retried)
  end
end

local function take_ready(call)
  local most = math.min(call.limit - call.handed, call.room)
  if most <= 0 then
    return
  end
  local members = redis.call('ZRANGE', call.keys[READY], 0, most - 1)
  if #members == 0 then
    return
  end
  local ids, there = {}, {}
  for i, member in ipairs(members) do
    ids[i] = '0-' .. string.match(member, '^%d+')
  end
  each_part(call, call.handed, #ids, function(consumer, first, last)
    for _, id in ipairs(claim(call, consumer, ids, first, last, 1)) do
      there[id] = true
    end
  end)
  redis.call('ZREM', call.keys[READY], unpack(members))
  for i, member in ipairs(members) do
    local position, version, stream = string.match(member, '^(%d+):(%d+):(.*)$')
    if there[ids[i]] then
      hand_out(call, position, 1, version, stream)
    else
      leave(call, 'gone', position, '0:0:' .. version .. ':' .. stream)
    end
  end
  call.room = call.room - #members
end

-- Where the group stands from now on; Redis' own group too, so that XINFO GROUPS tells the truth.
local function move_cursor(call)
  local cursor = digits(call.group.cursor)
  redis.call('XGROUP', 'SETID', call.keys[SOURCE], call.group.name, '0-' .. cursor, 'ENTRIESREAD', cursor)
  redis.call('HSET', call.keys[GROUP], 'cursor', cursor, 'held', digits(call.group.held))
end

-- Entries that Redis' group gave, but not from the group's own cursor on: somebody moved that of Redis by hand, or
-- removed entries of the log. It stands again where it should; what is behind the cursor and in nobody's hands is not
-- pending, and what is ahead will be when its turn comes.
local function give_back(call, entries)
  local behind, cursor = {}, call.group.cursor
  for _, entry in ipairs(entries) do
    local position = string.match(entry[1], '%d+$')
    if tonumber(position) <= cursor and redis.call('HEXISTS', call.keys[LEASE], position) == 0 then
      behind[#behind + 1] = entry[1]
    end
  end
  if #behind > 0 then
    redis.call('XACK', call.keys[SOURCE], call.group.name, unpack(behind))
  end
  move_cursor(call)
end

-- The entries that Redis' own group gives a consumer, now pending; nil where they are not those right after position
-- `after`.
local function read_group(call, consumer, after, most)
  local found = redis.call('XREADGROUP', 'GROUP', call.group.name, consumer, 'COUNT', most, 'STREAMS',
    call.keys[SOURCE], '>')
  local entries = found and found[1][2] or {}
  local count = #entries
  if count > 0 and entries[1][1] == '0-' .. digits(after + 1) and entries[count][1] == '0-' .. digits(after + count) then
    return entries
  end
  give_back(call, entries)
end

-- Makes new entries pending. Where each one behind `first` is to be handed out, Redis' own group gives just those: many
-- of them in half the time.
local function claim_new(call, ids, first)
  local all = not call.group.stream and call.group.cursor == first + #ids
  each_part(call, call.handed - #ids, #ids, function(consumer, from, to)
    all = all and to - from + 1 >= RUN and read_group(call, consumer, first + from - 1, to - from + 1)
    if not all then
      claim(call, consumer, ids, from, to, 1)
    end
  end)
end

-- A group without order that wants all of the log takes new events by what Redis' own group gives it: half the work. Each
-- consumer takes its own. Returns the state; nil where that is not possible, or not what should come.
local function take_all(call)
  local keys, group = call.keys, call.group
  if group.ordered or group.types or group.categories or group.stream or group.cursor < group.overlap
    or redis.call('XLEN', keys[SOURCE]) <= group.cursor then
    return nil
  end
  local most, taken = math.min(call.limit - call.handed, call.room), 0
  local state = most < call.limit - call.handed and 'full' or 'more'
  each_part(call, call.handed, most, function(consumer, first, last)
    local entries = read_group(call, consumer, group.cursor, last - first + 1)
    if not entries then
      state = taken > 0 and 'more' or nil
      return false
    end
    local count = #entries
    for i = 1, count do
      local fields = entries[i][2]
      hand_out(call, string.sub(entries[i][1], 3), 1, fields[4], fields[2])
    end
    taken, group.cursor = taken + count, group.cursor + count
    if count < last - first + 1 then
      state = 'head'
      return false
    end
  end)
  if taken > 0 then
    -- Redis' own group has moved on by itself.
    redis.call('HSET', keys[GROUP], 'cursor', digits(group.cursor))
  end
  return state
end

-- An event of a stream that is busy is passed over: counted, and stored nowhere. True where `stream` is busy.
local function pass_over(call, passed, stream, version)
  local busy = passed[stream]
  if not busy then
    return false
  end
  if busy.from == busy.to then
    -- The first one: what lies between its replayed event and this one was delivered long ago.
    busy.from = tonumber(version) - 1
  end
  busy.to = tonumber(version)
  busy.held, busy.changed, busy.fresh = busy.held + 1, true, nil
  call.group.held = call.group.held + 1
  passed[stream] = busy
  return true
end

-- Reads what the streams of these entries stand at, where that is not known yet.
local function look_up_busy(call, passed, entries)
  local group, streams, asked = call.group, {}, {}
  for _, entry in ipairs(entries) do
    local stream = group.stream or entry[2][2]
    if passed[stream] == nil and not asked[stream] and (group.stream or matches(group, stream, entry[2][6])) then
      asked[stream] = true
      streams[#streams + 1] = stream
    end
  end
  if #streams > 0 then
    local texts = redis.call('HMGET', call.keys[BUSY], unpack(streams))
    for i, stream in ipairs(streams) do
      passed[stream] = parse_busy(texts[i]) or false
    end
  end
end

-- Writes what streams stand at. None stops here, and none that is stopped goes on.
local function save_passed(call, passed)
  local texts = {}
  for stream, busy in pairs(passed) do
    if busy and busy.changed then
      local n = #texts
      texts[n + 1], texts[n + 2] = stream, busy.fresh or busy_text(busy)
    end
  end
  if #texts > 0 then
    redis.call('HSET', call.keys[BUSY], unpack(texts))
  end
end

-- Looks at the entries after the cursor, in pieces. Returns the state.
local function take_new(call)
  local keys, group, room = call.keys, call.group, call.room
  local looked, first, passed, ids = call.handed, group.cursor, {}, {}
  local filtered = group.types or group.categories
  local state, piece = 'more', filtered and 4 + 2 * call.limit or call.limit / 2
  while call.handed < call.limit and looked < call.look do
    if #ids >= room then
      state = 'full'
      break
    end
    piece = math.min(2 * piece, call.look - looked, group.stream and 16 or 100)
    if not group.ordered and not filtered then
      piece = math.min(piece, call.limit - call.handed, room - #ids)
    end
    local entries = redis.call('XRANGE', keys[SOURCE], '0-' .. digits(group.cursor + 1), '+', 'COUNT', piece)
    if group.ordered then
      look_up_busy(call, passed, entries)
    end
    for _, entry in ipairs(entries) do
      if call.handed >= call.limit or #ids >= room then
        break
      end
      local position, fields = string.match(entry[1], '%d+$'), entry[2]
      local stream, version, kind = group.stream, position, nil
      if stream then
        kind = group.types and field(fields, 'type')
      else
        stream, version, kind = fields[2], fields[4], fields[6]
      end
      group.cursor = tonumber(position)
      looked = looked + 1
      if group.cursor <= group.overlap then
        redis.call('ZREM', keys[PARKED], position)
        redis.call('HDEL', keys[PARKED_INFO], position)
      end
      if matches(group, stream, kind) and not (group.ordered and pass_over(call, passed, stream, version)) then
        ids[#ids + 1] = '0-' .. position
        hand_out(call, position, 1, version, stream)
        if group.ordered then
          local v = tonumber(version)
          passed[stream] = { position = position, from = v, to = v, held = 0, block = 0, again = '0',
            changed = true, fresh = position .. ':' .. version .. ':' .. version .. ':0:0:0' }
        end
      end
    end
    if #entries < piece and (#entries == 0 or group.cursor == tonumber(string.match(entries[#entries][1], '%d+$'))) then
      state = 'head'
      break
    end
  end
  claim_new(call, ids, first)
  if group.cursor > first then
    move_cursor(call)
    save_passed(call, passed)
  end
  return state
end

-- Of those that end at once the last ones first: in a small sorted set each then finds its place without a search.
local function write_leases(call)
  local events, deadline, dues = call.events, digits(call.deadline), {}
  if #events == 0 then
    return
  end
  for i = #events - 1, 1, -2 do
    local n = #dues
    dues[n + 1], dues[n + 2] = deadline, events[i]
  end
  redis.call('HSET', call.keys[LEASE], unpack(events))
  redis.call('ZADD', call.keys[DUE], unpack(dues))
end

-- When somebody last asked, to within ten seconds: empty answers cost no write.
local function note_asked(call)
  if math.abs(call.now - call.group.asked) > ASKED_MS then
    redis.call('HSET', call.keys[GROUP], 'asked', digits(call.now))
  end
end

-- When the first lease ends or retry is due; 0 where none waits.
local function first_due(keys)
  return tonumber(redis.call('ZRANGE', keys[DUE], 0, 0, 'WITHSCORES')[2] or 0)
end

-- Hands out what there is. Returns the state, and when the next lease ends or retry is due.
local function take(call)
  local keys, group, due = call.keys, call.group, first_due(call.keys)
  if group.paused then
    return 'paused', due
  end
  local some_due = due > 0 and due <= call.now
  if some_due then
    take_due(call)
  end
  call.room = group.max_in_flight - redis.call('ZCARD', keys[DUE])
  take_ready(call)
  local state = (call.handed >= call.limit and 'more') or (call.room <= 0 and 'full') or take_all(call) or take_new(call)
  write_leases(call)
  if some_due or #call.chores > 0 then
    due = first_due(keys)
  elseif call.handed > 0 then
    due = due > 0 and math.min(due, call.deadline) or call.deadline
  end
  for _, stream in ipairs(group.ordered and redis.call('ZRANGE', keys[TODO], 0, 9) or {}) do
    local at = #call.chores
    call.chores[at + 1], call.chores[at + 2], call.chores[at + 3] = 'release', stream, ''
  end
  return state, due
end

local function next_events(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local call = new_call(keys, args, group)
  note_asked(call)
  local state, due = take(call)
  return { state, due, call.now, call.deadline, call.counts, call.events, call.chores }
end

redis.register_function('es_next' .. suffix, next_events)
