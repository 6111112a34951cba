-- keys: leases tokens
-- args: clone_id token milliseconds
--
-- Makes a lease last for so many milliseconds from now on.
--
-- Returns 1, or 0 if the clone has ended or another lease replaced this one. A lease that has expired can be renewed
-- until somebody else claims the clone.

if redis.call('HGET', keys.tokens, args.clone_id) ~= args.token then return 0 end
redis.call('ZADD', keys.leases, now_milliseconds() + args.milliseconds, args.clone_id)
return 1
