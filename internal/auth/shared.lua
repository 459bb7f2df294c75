-- What failures.go does in a process's memory, done for all hosts at once. ARGV: the prefix of all names, what to do, the time in microseconds
-- since 1970 or 0 for the server's own, Limits.Time in seconds, the limits of clients and accounts, and what is said at each branch.
-- Times within are microseconds. Every key has a time to live.
local prefix, op, now, period = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local limits = {client = tonumber(ARGV[5]), account = tonumber(ARGV[6])}
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local second, day = 1000000, 86400 * 1000000
-- As in failures.go: wrongTime, runningTime; as in guard.go: both generations of maxFailing.
local keep, running, most = math.max(3600, 2 * period) * second, 60 * second, 20000
-- Addresses that are known for one account.
local pairs_most = 64

local function num(x) return string.format('%.17g', x) end

local function rate(f)
  if f.limit <= 0 or period <= 0 then return 1, 60 end
  return f.limit, period
end

-- read takes a number that is kept; what somebody else wrote there counts as none.
local function read(text, instead)
  local n = tonumber(text or '')
  if not n or not (n >= 0 and n < 1e16) then return instead end
  return n
end

-- load gives the entry of an address or account, with its level now.
local function load(kind, name)
  local key = prefix .. kind .. ':' .. name
  local v = redis.pcall('HMGET', key, 'level', 'last', 'ends', 'since', 'running', 'ran', 'refused', 'wrong')
  if v.err then
    redis.call('DEL', key)
    v = {}
  end
  local f = {kind = kind, name = name, key = key, limit = limits[kind], level = read(v[1], 0), last = read(v[2], now), ends = read(v[3], 0),
    since = read(v[4], 0), running = read(v[5], 0), ran = read(v[6], 0), refused = read(v[7], 0), wrong = v[8] or ''}
  local limit, over = rate(f)
  local passed = now - f.last
  if passed > 0 then
    f.level = math.max(0, f.level - limit * (passed / second) / over)
    if f.level < 0.000001 then f.level = 0 end
    if passed > keep then f.wrong = '' end
  end
  if now - f.ran > running then f.running = 0 end
  f.last = now
  return f
end

local function drop(f)
  redis.call('DEL', f.key)
  redis.call('ZREM', prefix .. f.kind .. 's', f.name)
end

-- save keeps an entry for as long as it tells anything. The index has when that ends, and bounds how many there are.
local function save(f)
  local limit, over = rate(f)
  local life = math.min(math.max(f.ends - now, f.level * over / limit * second, keep) + 60 * second, 8 * day)
  redis.call('HSET', f.key, 'level', num(f.level), 'last', num(f.last), 'ends', num(f.ends), 'since', num(f.since), 'running', num(f.running), 'ran', num(f.ran),
    'refused', num(f.refused), 'wrong', f.wrong)
  redis.call('PEXPIRE', f.key, math.ceil(life / 1000))
  local index = prefix .. f.kind .. 's'
  -- What is locked goes last.
  local score = now + life
  if f.ends > now then score = score + 8 * day end
  redis.call('ZADD', index, num(score), f.name)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', num(now))
  redis.call('PEXPIRE', index, 16 * day / 1000)
  local over_most = redis.call('ZCARD', index) - most
  if over_most > 0 then
    local gone = redis.call('ZRANGE', index, 0, over_most - 1)
    for _, name in ipairs(gone) do
      redis.call('DEL', prefix .. f.kind .. ':' .. name)
    end
    redis.call('ZREMRANGEBYRANK', index, 0, over_most - 1)
  end
end

-- tell gives what hosts keep of an entry, in times that do not hang on their clocks.
local function tell(out, f)
  out[#out + 1] = num(f.level)
  out[#out + 1] = num(math.max(0, f.ends - now))
  out[#out + 1] = num(math.max(0, now - f.since))
  out[#out + 1] = num(f.refused)
end

-- each gives the entries that a login counts for. Where the client gave no name, as tokens need none, that is its address alone.
local function each(client, account)
  local all = {load('client', client)}
  if account ~= '' then all[2] = load('account', account) end
  return all
end

-- pad gives an answer the words of an account that is none.
local function pad(out, words)
  while #out < words do out[#out + 1] = '0' end
  return out
end

local function had(wrong, one)
  for i = 1, #wrong, 16 do
    if wrong:sub(i, i + 15) == one then return true end
  end
  return false
end

-- note remembers the last eight wrong passwords.
local function note(f, one)
  f.wrong = (f.wrong .. one):sub(-128)
end

if op == 'before' then
  -- client, account, key and member of the known pair, seconds that one is known, 1 with a password. What stands behind the member is for the
  -- host, which cannot be told by its question what it wants to hear.
  local pairs_known = redis.call('ZRANGE', prefix .. 'known:' .. ARGV[9], -pairs_most, -1, 'WITHSCORES')
  for i = 1, #pairs_known, 2 do
    local at = tonumber(pairs_known[i + 1])
    if pairs_known[i]:sub(1, #ARGV[10]) == ARGV[10] and now / second - at < tonumber(ARGV[11]) then
      return {'known', num(math.floor(at)), pairs_known[i]:sub(#ARGV[10] + 1)}
    end
  end
  local both, refused = each(ARGV[7], ARGV[8]), ''
  for _, f in ipairs(both) do
    if f.limit > 0 and (f.ends > now or f.running > 0 and f.level + f.running / 2 >= f.limit) then
      f.refused = f.refused + 1
      save(f)
      refused = f.kind
      break
    end
  end
  local out = {'entries', refused}
  for _, f in ipairs(both) do
    if refused == '' and ARGV[12] == '1' then
      f.running, f.ran = f.running + 1, now
      save(f)
    end
    tell(out, f)
  end
  return pad(out, 10)
end

if op == 'failed' then
  -- client, account, 1 to end a check that was under way, the wrong password or ''.
  local out = {}
  for _, f in ipairs(each(ARGV[7], ARGV[8])) do
    if ARGV[9] == '1' then f.running = math.max(0, f.running - 1) end
    local repeated = ARGV[10] ~= '' and had(f.wrong, ARGV[10])
    if not repeated then
      if ARGV[10] ~= '' then note(f, ARGV[10]) end
      f.level = f.level + 1
    end
    local locked = f.limit > 0 and f.ends <= now and f.level > f.limit - 0.99
    if locked then
      f.since, f.ends, f.refused = now, now + period * second, 0
      redis.call('PUBLISH', prefix .. 'locked', f.kind .. ' ' .. num(f.level) .. ' ' .. num(period * second) .. ' ' .. f.name)
    end
    save(f)
    out[#out + 1] = repeated and '1' or '0'
    out[#out + 1] = locked and '1' or '0'
    tell(out, f)
  end
  return pad(out, 12)
end

if op == 'done' then
  -- client, account, 1 to end a check that was under way, seconds that pairs are known, and those that logged in: key, member with what stands behind it.
  for _, f in ipairs(each(ARGV[7], ARGV[8])) do
    if ARGV[9] == '1' then f.running = math.max(0, f.running - 1) end
    if f.running == 0 and f.level == 0 and f.ends == 0 then
      drop(f)
    elseif ARGV[9] == '1' then
      save(f)
    end
  end
  for i = 11, #ARGV, 2 do
    local key = prefix .. 'known:' .. ARGV[i]
    redis.call('ZADD', key, num(math.floor(now / second)), ARGV[i + 1])
    redis.call('ZREMRANGEBYRANK', key, 0, -pairs_most - 1)
    redis.call('EXPIRE', key, ARGV[10])
  end
  return {}
end

if op == 'join' then
  -- What a host counted while it could not ask: when it had read what was cleared, or ''; then kind, name, level, microseconds that a lock still
  -- lasts and since it began, wrong passwords. What was cleared since is not brought back: the host hears of it as all do.
  local function cleared(name)
    local at = redis.call('ZSCORE', prefix .. 'cleared', name)
    return at and tonumber(at) >= tonumber(ARGV[7])
  end
  local all = ARGV[7] ~= '' and cleared('')
  for i = 8, #ARGV, 6 do
    if not all and (ARGV[7] == '' or not cleared(ARGV[i + 1])) then
      local f = load(ARGV[i], ARGV[i + 1])
      f.level = math.max(f.level, tonumber(ARGV[i + 2]))
      local ends = now + tonumber(ARGV[i + 3])
      if ends > now and ends > f.ends then
        if f.ends <= now then f.since, f.refused = now - tonumber(ARGV[i + 4]), 0 end
        f.ends = ends
      end
      for k = 1, #ARGV[i + 5], 16 do
        local one = ARGV[i + 5]:sub(k, k + 15)
        if not had(f.wrong, one) then note(f, one) end
      end
      save(f)
    end
  end
  return {}
end

if op == 'clear' then
  -- A name, or '' for all; and who says so.
  local n = 0
  for _, kind in ipairs({'client', 'account'}) do
    local names = {ARGV[7]}
    if ARGV[7] == '' then names = redis.call('ZRANGE', prefix .. kind .. 's', 0, -1) end
    for _, name in ipairs(names) do
      if redis.call('EXISTS', prefix .. kind .. ':' .. name) == 1 then
        local f = load(kind, name)
        if math.ceil(f.level - 0.01) > 0 or f.ends > now then n = n + 1 end
        f.level, f.ends, f.wrong = 0, 0, ''
        save(f)
      end
    end
  end
  local cleared = prefix .. 'cleared'
  redis.call('ZADD', cleared, num(now), ARGV[7])
  redis.call('ZREMRANGEBYSCORE', cleared, '-inf', num(now - day))
  redis.call('ZREMRANGEBYRANK', cleared, 0, -1001)
  redis.call('PEXPIRE', cleared, day / 1000)
  redis.call('PUBLISH', prefix .. 'cleared', ARGV[8] .. ' ' .. ARGV[7])
  return {tostring(n)}
end

if op == 'cleared' then
  -- The time, and what was cleared within so many microseconds before it.
  local out = redis.call('ZRANGEBYSCORE', prefix .. 'cleared', num(now - tonumber(ARGV[7])), '+inf')
  table.insert(out, 1, num(now))
  return out
end

if op == 'list' then
  -- kind, and from which to which.
  local out = {}
  for _, name in ipairs(redis.call('ZRANGE', prefix .. ARGV[7] .. 's', ARGV[8], ARGV[9])) do
    out[#out + 1] = name
    tell(out, load(ARGV[7], name))
  end
  return out
end

return redis.error_reply('ERR Indigo: no such operation ' .. op)
