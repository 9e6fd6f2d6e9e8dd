-- es_append: add events to a stream whose version meets a condition, and their pointers to the partition's log.
--
-- KEYS     1 events:<stream>    2 log    3 ids:<stream>    4 stream:<stream>
-- ARGV     1 condition: '' nothing, 'none' no events yet, 'exists' some event, or versions joined by ','
--          2 index: '1' where the ids are to be kept in ids:<stream>, '' where the service made them; where they follow
--            from a key, the form in the index of the id that one more event would have
--          3 again: '' at first; in a repeat after a broken connection the call's age in milliseconds
--          4 stream id, for the log
--          5.. five for each event: id, its form in the index, type, data, metadata
-- RETURNS  version of the first event, version of the last, position of the last, 1 if they were there already, else 0
-- ERRORS   WRONGVERSION <version>   the condition does not hold
--          TOMBSTONED deleted       the stream was deleted for ever
--          IDREUSED <index>         the event's id stands in the stream with another type or other data
--          DUPLICATEID <index>      the event is there already, others of the call are not, or not in this order
--          UNSETTLED repeat         a repeat that cannot tell whether the first call was carried out
--          FOREIGN stream           the stream was not written by Streamkeep
--          After each of them, nothing was written. Each has a second word: Redis puts ERR before a single one.

local WIDTH = 5 -- arguments an event
local FIRST = 5 -- index of the first event's first argument
local LOOK_BACK_ENTRIES = 1000
local LOOK_BACK_BYTES = 8 * 1024 * 1024

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

-- The events are all in the index, at `versions`. Answers as the first call did, or says what differs.
local function answer_again(keys, args, versions)
  local position = 0
  for i, version in ipairs(versions) do
    if i > 1 and tonumber(version) <= tonumber(versions[i - 1]) then
      return redis.error_reply('DUPLICATEID ' .. digits(i - 1))
    end
    local at = FIRST + (i - 1) * WIDTH
    local id = '0-' .. version
    local entry = redis.call('XRANGE', keys[1], id, id)[1]
    if entry then
      if field(entry[2], 'type') ~= args[at + 2] or field(entry[2], 'data') ~= args[at + 3] then
        return redis.error_reply('IDREUSED ' .. digits(i - 1))
      end
      position = tonumber(field(entry[2], 'position'))
    end
  end
  -- Nothing changes, but something is written: a WAIT behind this call must cover the first one.
  redis.call('HSET', keys[3], args[FIRST + 1], versions[1])
  return { tonumber(versions[1]), tonumber(versions[#versions]), position, 1 }
end

-- Looks the ids up: nil where none is known.
local function check_index(keys, args, count)
  local forms = {}
  for i = 1, count do
    forms[i] = args[FIRST + (i - 1) * WIDTH + 1]
  end
  local versions = redis.call('HMGET', keys[3], unpack(forms))
  local known, first_known = 0, nil
  for i = 1, count do
    if versions[i] then
      known = known + 1
      first_known = first_known or i
    end
  end
  if known == count then
    if args[2] ~= '1' and redis.call('HEXISTS', keys[3], args[2]) == 1 then
      return redis.error_reply('DUPLICATEID ' .. digits(count - 1))
    end
    return answer_again(keys, args, versions)
  elseif known > 0 then
    return redis.error_reply('DUPLICATEID ' .. digits(first_known - 1))
  end
end

-- A call's first event is found: answers as the first call did, or would have. Its id goes into the index, where it may
-- stand already, for something must be written: a WAIT behind this call must cover the first one.
local function told(keys, args, entry, count)
  local version = stored_version(entry)
  redis.call('HSET', keys[3], args[FIRST + 1], digits(version))
  return { version, version + count - 1, tonumber(field(entry[2], 'position')) + count - 1, 0 }
end

-- A call whose ids the service made. Its repeat keeps the first of them in the index: a call that was only thought to be
-- lost, and arrives after its repeat, finds it there. nil where it was not repeated.
local function check_repeated(keys, args, count)
  local version = redis.call('HGET', keys[3], args[FIRST + 1])
  if not version then
    return nil
  end
  local id = '0-' .. version
  local entry = redis.call('XRANGE', keys[1], id, id)[1]
  return entry and told(keys, args, entry, count) or redis.error_reply('UNSETTLED repeat')
end

-- A repeat of a call whose ids are in no index, and whose condition names versions: its first event can only be behind
-- one of them. nil where it was surely not carried out.
local function look_behind_expected(keys, args, count)
  local versions = args[1] == 'none' and '0' or args[1]
  for expected in string.gmatch(versions, '%d+') do
    local id = '0-' .. digits(tonumber(expected) + 1)
    local entry = redis.call('XRANGE', keys[1], id, id)[1]
    if entry and field(entry[2], 'id') == args[FIRST] then
      return told(keys, args, entry, count)
    end
  end
end

-- The same where it can be at any version: looks for its first id from the head, not before the call began.
local function look_back(keys, args, count)
  local oldest = clock() - tonumber(args[3])
  local seen, bytes, upper = 0, 0, '+'
  while seen < LOOK_BACK_ENTRIES and bytes < LOOK_BACK_BYTES do
    local entries = redis.call('XREVRANGE', keys[1], upper, '-', 'COUNT', 10)
    if #entries == 0 then
      return nil
    end
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      if field(fields, 'id') == args[FIRST] then
        return told(keys, args, entry, count)
      elseif tonumber(field(fields, 'timestamp')) < oldest then
        return nil
      end
      seen = seen + 1
      bytes = bytes + #field(fields, 'data') + #field(fields, 'metadata')
    end
    upper = '(' .. entries[#entries][1]
  end
  return redis.error_reply('UNSETTLED repeat')
end

local function add_event(send, key, args, i, now, version, position)
  local at = FIRST + (i - 1) * WIDTH
  version = digits(version)
  return send('XADD', key, '0-' .. version, 'id', args[at], 'type', args[at + 2], 'data', args[at + 3], 'metadata',
    args[at + 4], 'timestamp', now, 'version', version, 'position', digits(position))
end

-- Adds the first event at the version after XLEN. Refused where the condition does not hold for that version, or Redis
-- knows of a higher one (events were removed, or the stream is tombstoned): then decides again from the stored facts.
local function add_first(keys, args, now, position)
  local version = redis.call('XLEN', keys[1])
  if holds(args[1], version) and not add_event(redis.pcall, keys[1], args, 1, now, version + 1, position).err then
    return version + 1
  end
  if redis.call('HEXISTS', keys[4], 'tombstone') == 1 then
    return nil, 'TOMBSTONED deleted'
  end
  version = last_number(keys[1])
  if not version then
    return nil, 'FOREIGN stream'
  elseif not holds(args[1], version) then
    return nil, 'WRONGVERSION ' .. digits(version)
  end
  add_event(redis.call, keys[1], args, 1, now, version + 1, position)
  return version + 1
end

local function append(keys, args)
  local count = (#args - FIRST + 1) / WIDTH
  local indexed, again = args[2] ~= '', args[3] ~= ''
  local settled
  if indexed then
    settled = check_index(keys, args, count)
  else
    settled = check_repeated(keys, args, count)
    if again and not settled then
      local anywhere = args[1] == '' or args[1] == 'exists'
      settled = (anywhere and look_back or look_behind_expected)(keys, args, count)
    end
  end
  if settled then
    return settled
  end

  local now = digits(clock())
  local position = redis.call('XLEN', keys[2])
  local first, refusal = add_first(keys, args, now, position + 1)
  if not first then
    return redis.error_reply(refusal)
  end
  for i = 2, count do
    add_event(redis.call, keys[1], args, i, now, first + i - 1, position + i)
  end

  for i = 1, indexed and count or again and 1 or 0 do
    redis.call('HSET', keys[3], args[FIRST + (i - 1) * WIDTH + 1], digits(first + i - 1))
  end
  -- Last, for this alone could fail: if somebody else wrote to the log. A repeat then finds the events.
  for i = 1, count do
    position = add_pointer(keys[2], args[4], first + i - 1, args[FIRST + (i - 1) * WIDTH + 2], position + 1)
  end
  return { first, first + count - 1, position, 0 }
end

redis.register_function('es_append' .. suffix, append)
