-- 0001_create_store: write down what is fixed for ever when a store is created.
--
-- KEYS     1 streamkeep:schema
-- ARGV     1 number of partitions
-- RETURNS  'done'

redis.call('HSET', KEYS[1], 'partitions', ARGV[1])
return 'done'
