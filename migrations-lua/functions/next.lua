-- es_next: hand out events to a consumer, each with a lease. Due retries and expired leases first, then what was
-- released, then new ones.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 generation    3 consumer    4 most events    5 nonce, 16 hex digits, new for every call
--          6 most entries to look at, of all kinds together; no more events than that are handed out
-- RETURNS  1 'more' (ask again at once), 'head' (nothing more by now), 'full' (max_in_flight is reached), 'paused'
--          2 when the next lease ends or retry is due, ms since 1970; 0 where none waits    3 Redis' clock, likewise
--          4 five for each event: position, version, stream, delivery count, when its lease ends
--          5 three for each chore: 'exhausted' or 'gone', position, lease text; or 'release', stream, ''
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

local ASKED_MS = 10000

local function new_call(keys, args, group)
  local now, look = clock(), tonumber(args[6])
  return {
    keys = keys, group = group, consumer = args[3], limit = math.min(tonumber(args[4]), look), nonce = args[5],
    now = now, look = look, deadline = now + group.lease_ms, events = {}, chores = {}, handed = 0, leases = {}, dues = {},
  }
end

-- Notes an event as handed out. What is noted is written by `write_leases`.
local function hand_out(call, position, count, version, stream)
  local text = call.nonce .. ':' .. digits(count) .. ':' .. version .. ':' .. stream
  local n, at = #call.leases, #call.events
  call.leases[n + 1], call.leases[n + 2] = position, text
  call.dues[n + 1], call.dues[n + 2] = digits(call.deadline), position
  call.events[at + 1], call.events[at + 2], call.events[at + 3] = position, version, stream
  call.events[at + 4], call.events[at + 5] = count, call.deadline
  call.handed = call.handed + 1
end

local function leave(call, what, position, text)
  leave_chore(call.keys, call.chores, call.nonce, call.now, what, position, text)
  call.handed = call.handed + 1
end

local function claim(call, position, count)
  return #redis.call('XCLAIM', call.keys[SOURCE], call.group.name, call.consumer, 0, '0-' .. position, 'FORCE',
    'JUSTID', 'RETRYCOUNT', count) > 0
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
    elseif claim(call, position, count + 1) then
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
  for _, member in ipairs(members) do
    local position, version, stream = string.match(member, '^(%d+):(%d+):(.*)$')
    redis.call('ZREM', call.keys[READY], member)
    if claim(call, position, 1) then
      hand_out(call, position, 1, version, stream)
    else
      leave(call, 'gone', position, '0:0:' .. version .. ':' .. stream)
    end
  end
  call.room = call.room - #members
end

-- An event of a stream that is busy is passed over: counted, and stored nowhere. True where `stream` is busy.
local function pass_over(call, passed, stream, version)
  local busy = passed[stream] or load_busy(call.keys, stream)
  if not busy then
    return false
  end
  if busy.from == busy.to then
    -- The first one: what lies between its replayed event and this one was delivered long ago.
    busy.from = tonumber(version) - 1
  end
  busy.to = tonumber(version)
  busy.held = busy.held + 1
  call.group.held = call.group.held + 1
  passed[stream] = busy
  return true
end

-- Looks at the entries after the cursor, in pieces. Returns the state.
local function take_new(call)
  local keys, group, room = call.keys, call.group, call.room
  local looked, first, passed, ids = call.handed, group.cursor, {}, {}
  local state, piece = 'more', 4 + 2 * call.limit
  while call.handed < call.limit and looked < call.look do
    if #ids >= room then
      state = 'full'
      break
    end
    piece = math.min(2 * piece, call.look - looked, group.stream and 16 or 100)
    if not group.ordered and not group.types and not group.categories then
      piece = math.min(piece, call.limit - call.handed, room - #ids)
    end
    local entries = redis.call('XRANGE', keys[SOURCE], '0-' .. digits(group.cursor + 1), '+', 'COUNT', piece)
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
          passed[stream] = { position = position, from = v, to = v, held = 0, block = 0, again = '0' }
        end
      end
    end
    if #entries < piece and (#entries == 0 or group.cursor == tonumber(string.match(entries[#entries][1], '%d+$'))) then
      state = 'head'
      break
    end
  end
  if group.cursor > first then
    local cursor = digits(group.cursor)
    redis.call('XGROUP', 'SETID', keys[SOURCE], group.name, '0-' .. cursor, 'ENTRIESREAD', cursor)
    redis.call('HSET', keys[GROUP], 'cursor', cursor, 'held', digits(group.held))
    for stream, busy in pairs(passed) do
      save_busy(keys, stream, busy)
    end
  end
  if #ids > 0 then
    local arguments = { 'XCLAIM', keys[SOURCE], group.name, call.consumer, 0 }
    for i = 1, #ids do
      arguments[i + 5] = ids[i]
    end
    local n = #arguments
    arguments[n + 1], arguments[n + 2], arguments[n + 3], arguments[n + 4] = 'FORCE', 'JUSTID', 'RETRYCOUNT', 1
    redis.call(unpack(arguments))
  end
  return state
end

local function write_leases(call)
  if #call.leases > 0 then
    redis.call('HSET', call.keys[LEASE], unpack(call.leases))
    redis.call('ZADD', call.keys[DUE], unpack(call.dues))
  end
end

-- When somebody last asked, to within ten seconds: empty answers cost no write.
local function note_asked(call)
  local asked = tonumber(redis.call('HGET', call.keys[GROUP], 'asked') or 0)
  if math.abs(call.now - asked) > ASKED_MS then
    redis.call('HSET', call.keys[GROUP], 'asked', digits(call.now))
  end
end

local function next_events(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local call = new_call(keys, args, group)
  note_asked(call)
  local state = 'paused'
  if not group.paused then
    take_due(call)
    call.room = group.max_in_flight - redis.call('ZCARD', keys[DUE])
    take_ready(call)
    state = (call.handed >= call.limit and 'more') or (call.room <= 0 and 'full') or take_new(call)
    write_leases(call)
    for _, stream in ipairs(redis.call('ZRANGE', keys[TODO], 0, 9)) do
      local at = #call.chores
      call.chores[at + 1], call.chores[at + 2], call.chores[at + 3] = 'release', stream, ''
    end
  end
  local due = redis.call('ZRANGE', keys[DUE], 0, 0, 'WITHSCORES')
  return { state, tonumber(due[2] or 0), call.now, call.events, call.chores }
end

redis.register_function('es_next' .. suffix, next_events)
