-- es_copy: add an event of another store to its stream, with the version and the time that it has there, and its pointer to
-- the partition's log. What is there already stays as it is, so a call may be repeated.
--
-- KEYS     1 events:<stream>    2 log    3 ids:<stream>
-- ARGV     1 version    2 time, ms since 1970    3 the id's form in the index where it is to be kept in ids:<stream>, else ''
--          4 stream id    5 id, '' where the event was removed    6 type    7 data    8 metadata
-- RETURNS  1, or 0 where it was there already
-- ERRORS   OTHEREVENT <version>     another event stands at the version
--          GAP <version>            the stream lacks the event of this version, which comes before
--          FOREIGN stream           the stream was not written by Streamkeep
--          After each of them, nothing was written.

-- What stands at the version is this event, as far as it was not removed here or there.
local function is_same(key, id, event_id)
  local entry = redis.call('XRANGE', key, id, id)[1]
  return not entry or event_id == '' or field(entry[2], 'id') == event_id
end

local function copy(keys, args)
  local version, last = tonumber(args[1]), last_number(keys[1])
  local id = '0-' .. args[1]
  if not last then
    return redis.error_reply('FOREIGN stream')
  elseif version <= last then
    return is_same(keys[1], id, args[5]) and 0 or redis.error_reply('OTHEREVENT ' .. args[1])
  elseif version > last + 1 then
    return redis.error_reply('GAP ' .. digits(last + 1))
  end
  local position = redis.call('XLEN', keys[2]) + 1
  redis.call('XADD', keys[1], id, 'id', args[5], 'type', args[6], 'data', args[7], 'metadata', args[8],
    'timestamp', args[2], 'version', args[1], 'position', digits(position))
  if args[5] == '' then
    -- Its version stays taken.
    redis.call('XDEL', keys[1], id)
  end
  if args[3] ~= '' then
    redis.call('HSET', keys[3], args[3], args[1])
  end
  add_pointer(keys[2], args[4], version, args[6], position)
  return 1
end

redis.register_function('es_copy' .. suffix, copy)
