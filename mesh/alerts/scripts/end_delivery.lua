-- keys: due alert
-- args: alert_id attempt
--
-- Ends the delivery of an alert after this attempt, unless there was news of it meanwhile: that is still to be told.

if redis.call('HGET', keys.alert, 'deliveries') == args.attempt then redis.call('ZREM', keys.due, args.alert_id) end
return 1
