-- es_append: add events to streams whose versions meet conditions, and their pointers to the partition's log. A call has
-- any number of appends, each of which stands for itself: all of its events or none, whatever becomes of the others.
--
-- KEYS     1 log    2.. three for each append: events:<stream>, ids:<stream>, stream:<stream>
-- ARGV     for each append:
--          1 number of events
--          2 condition: '' nothing, 'none' no events yet, 'exists' some event, or versions joined by ','
--          3 index: '1' where the ids are to be kept in ids:<stream>, '' where the service made them; where they follow
--            from a key, the form in the index of the id that one more event would have
--          4 again: '' at first; in a repeat after a broken connection the append's age in milliseconds
--          5 stream id, for the log
--          6.. five for each event: id, its form in the index, type, data, metadata
-- RETURNS  a line for each append: version of the first event, version of the last, position of the last, 1 if they were
--          there already, else 0, and where this call added them its time, in ms since 1970, as it stands in the events;
--          or an error. (One text: to Redis each number of a list is as dear as the whole of it.)
-- ERRORS   WRONGVERSION <version>   the condition does not hold
--          TOMBSTONED deleted       the stream was deleted for ever
--          IDREUSED <index>         the event's id stands in the stream with another type or other data
--          DUPLICATEID <index>      the event is there already, others of the append are not, or not in this order
--          UNSETTLED repeat         a repeat that cannot tell whether the first call was carried out
--          FOREIGN stream           the stream was not written by Streamkeep
--          After each of them, nothing was written.

local HEAD = 5 -- arguments an append, before its events
local WIDTH = 5 -- arguments an event
local LOOK_BACK_ENTRIES = 1000
local LOOK_BACK_BYTES = 8 * 1024 * 1024

-- What an append of the call is about. `first` is the index of its first event's first argument.
local function append_at(keys, key, args, at)
  return {
    events = keys[key], ids = keys[key + 1], facts = keys[key + 2],
    count = tonumber(args[at]), condition = args[at + 1], index = args[at + 2], again = args[at + 3],
    stream = args[at + 4], args = args, first = at + HEAD,
  }
end

local function holds(condition, version)
  if condition == '' or tonumber(condition) == version then
    return true
  elseif condition == 'none' then
    return version == 0
  elseif condition == 'exists' then
    return version > 0
  end
  for expected in string.gmatch(condition, '%d+') do
    if tonumber(expected) == version then
      return true
    end
  end
  return false
end

local function stored_version(entry)
  return tonumber(string.match(entry[1], '^0%-(%d+)$'))
end

local function line(first, last, position, known)
  return string.format('%d %d %d %d', first, last, position, known)
end

-- The events are all in the index, at `versions`. Answers as the first call did, or says what differs.
local function answer_again(append, versions)
  local args, position = append.args, 0
  for i, version in ipairs(versions) do
    if i > 1 and tonumber(version) <= tonumber(versions[i - 1]) then
      return 'DUPLICATEID ' .. digits(i - 1)
    end
    local at = append.first + (i - 1) * WIDTH
    local id = '0-' .. version
    local entry = redis.call('XRANGE', append.events, id, id)[1]
    if entry then
      if field(entry[2], 'type') ~= args[at + 2] or field(entry[2], 'data') ~= args[at + 3] then
        return 'IDREUSED ' .. digits(i - 1)
      end
      position = tonumber(field(entry[2], 'position'))
    end
  end
  -- Nothing changes, but something is written: a WAIT behind this call must cover the first one.
  redis.call('HSET', append.ids, args[append.first + 1], versions[1])
  return line(tonumber(versions[1]), tonumber(versions[#versions]), position, 1)
end

-- Looks the ids up: nil where none is known.
local function check_index(append)
  local count, forms = append.count, {}
  for i = 1, count do
    forms[i] = append.args[append.first + (i - 1) * WIDTH + 1]
  end
  local versions = redis.call('HMGET', append.ids, unpack(forms))
  local known, first_known = 0, nil
  for i = 1, count do
    if versions[i] then
      known = known + 1
      first_known = first_known or i
    end
  end
  if known == count then
    if append.index ~= '1' and redis.call('HEXISTS', append.ids, append.index) == 1 then
      return 'DUPLICATEID ' .. digits(count - 1)
    end
    return answer_again(append, versions)
  elseif known > 0 then
    return 'DUPLICATEID ' .. digits(first_known - 1)
  end
end

-- A call's first event is found: answers as the first call did, or would have. Its id goes into the index, where it may
-- stand already, for something must be written: a WAIT behind this call must cover the first one.
local function told(append, entry)
  local version, others = stored_version(entry), append.count - 1
  redis.call('HSET', append.ids, append.args[append.first + 1], digits(version))
  return line(version, version + others, tonumber(field(entry[2], 'position')) + others, 0)
end

-- A call whose ids the service made. Its repeat keeps the first of them in the index: a call that was only thought to be
-- lost, and arrives after its repeat, finds it there. nil where it was not repeated.
local function check_repeated(append)
  local version = redis.call('HGET', append.ids, append.args[append.first + 1])
  if not version then
    return nil
  end
  local id = '0-' .. version
  local entry = redis.call('XRANGE', append.events, id, id)[1]
  return entry and told(append, entry) or 'UNSETTLED repeat'
end

-- A repeat of a call whose ids are in no index, and whose condition names versions: its first event can only be behind
-- one of them. nil where it was surely not carried out.
local function look_behind_expected(append)
  local versions = append.condition == 'none' and '0' or append.condition
  for expected in string.gmatch(versions, '%d+') do
    local id = '0-' .. digits(tonumber(expected) + 1)
    local entry = redis.call('XRANGE', append.events, id, id)[1]
    if entry and field(entry[2], 'id') == append.args[append.first] then
      return told(append, entry)
    end
  end
end

-- The same where it can be at any version: looks for its first id from the head, not before the call began.
local function look_back(append, now)
  local oldest = now - tonumber(append.again)
  local seen, bytes, upper = 0, 0, '+'
  while seen < LOOK_BACK_ENTRIES and bytes < LOOK_BACK_BYTES do
    local entries = redis.call('XREVRANGE', append.events, upper, '-', 'COUNT', 10)
    if #entries == 0 then
      return nil
    end
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      if field(fields, 'id') == append.args[append.first] then
        return told(append, entry)
      elseif tonumber(field(fields, 'timestamp')) < oldest then
        return nil
      end
      seen = seen + 1
      bytes = bytes + #field(fields, 'data') + #field(fields, 'metadata')
    end
    upper = '(' .. entries[#entries][1]
  end
  return 'UNSETTLED repeat'
end

local function add_event(send, append, i, now, version, position)
  local args, at = append.args, append.first + (i - 1) * WIDTH
  version = digits(version)
  return send('XADD', append.events, '0-' .. version, 'id', args[at], 'type', args[at + 2], 'data', args[at + 3],
    'metadata', args[at + 4], 'timestamp', now, 'version', version, 'position', digits(position))
end

-- Adds the first event at the version after XLEN. Refused where the condition does not hold for that version, or Redis
-- knows of a higher one (events were removed, or the stream is tombstoned): then decides again from the stored facts.
local function add_first(append, now, position)
  local version = redis.call('XLEN', append.events)
  if holds(append.condition, version) and not add_event(redis.pcall, append, 1, now, version + 1, position).err then
    return version + 1
  end
  if redis.call('HEXISTS', append.facts, 'tombstone') == 1 then
    return nil, 'TOMBSTONED deleted'
  end
  version = last_number(append.events)
  if not version then
    return nil, 'FOREIGN stream'
  elseif not holds(append.condition, version) then
    return nil, 'WRONGVERSION ' .. digits(version)
  end
  add_event(redis.call, append, 1, now, version + 1, position)
  return version + 1
end

-- The answer to an append whose events are there already, or a refusal; nil where they are to be added.
local function check_known(append, shared)
  if append.index ~= '' then
    return check_index(append)
  end
  local settled = shared.some_ids and check_repeated(append)
  if append.again ~= '' and not settled then
    local anywhere = append.condition == '' or append.condition == 'exists'
    settled = (anywhere and look_back or look_behind_expected)(append, shared.now)
  end
  return settled
end

local function add(append, shared)
  local settled = check_known(append, shared)
  if settled then
    return settled
  end
  local count, args, now = append.count, append.args, shared.digits
  local position = shared.position or redis.call('XLEN', shared.log)
  shared.position = nil
  local first, refusal = add_first(append, now, position + 1)
  if not first then
    shared.position = position
    return refusal
  end
  for i = 2, count do
    add_event(redis.call, append, i, now, first + i - 1, position + i)
  end

  for i = 1, append.index ~= '' and count or append.again ~= '' and 1 or 0 do
    redis.call('HSET', append.ids, args[append.first + (i - 1) * WIDTH + 1], digits(first + i - 1))
  end
  -- Last, for this alone could fail: if somebody else wrote to the log. A repeat then finds the events.
  for i = 1, count do
    local kind = args[append.first + (i - 1) * WIDTH + 2]
    position = add_pointer(shared.log, append.stream, first + i - 1, kind, position + 1)
  end
  shared.position = position
  return line(first, first + count - 1, position, 0) .. ' ' .. now
end

-- What all appends of a call share, so that it is looked up once: the time, whether any of their streams has an index,
-- and, as far as known, the position of the last event in the log.
local function look(keys)
  local indexes = {}
  for key = 3, #keys, 3 do
    indexes[#indexes + 1] = keys[key]
  end
  local now = clock()
  return { log = keys[1], now = now, digits = digits(now), some_ids = redis.call('EXISTS', unpack(indexes)) > 0 }
end

local function append_all(keys, args)
  local shared, lines, at = look(keys), {}, 1
  for key = 2, #keys, 3 do
    local append = append_at(keys, key, args, at)
    -- What Redis refuses to one is no reason to leave the others without an answer.
    local done, answer = pcall(add, append, shared)
    lines[#lines + 1] = done and answer or type(answer) == 'table' and answer.err or 'ERR ' .. tostring(answer)
    at = append.first + append.count * WIDTH
  end
  return table.concat(lines, '\n')
end

redis.register_function('es_append' .. suffix, append_all)
