"""The scripts that run inside Redis: what `counters_memory` does, in Lua, each atomically.

Numbers of Lua are doubles, which are exact to 2**53 only. So an amount is three limbs of base 10**13, written
"a:b:c" (a has the sign, b and c are never negative): every intermediate result is below 2**53, and every
`Decimal(38, 9)` in billionths fits.

The time is that of the server: reservations of all processes end by one clock, whatever theirs say.
Scripts touch keys of one tag, which share a hash slot; which reservations have expired is only known inside.
"""

from typing import Final

from query_api.counters import GRACE_MS, KEPT_MS

_COMMON: Final = """
local B = 1e13
local function parse(s)
  if not s or s == '' then return {0, 0, 0} end
  local a, b, c = string.match(s, '^(-?%d+):(%d+):(%d+)$')
  return {tonumber(a), tonumber(b), tonumber(c)}
end
local function text(v) return string.format('%.0f:%.0f:%.0f', v[1], v[2], v[3]) end
local function add(x, y)
  local a, b, c = x[1] + y[1], x[2] + y[2], x[3] + y[3]
  if c >= B then c = c - B; b = b + 1 end
  if b >= B then b = b - B; a = a + 1 end
  return {a, b, c}
end
local function sub(x, y)
  local a, b, c = x[1] - y[1], x[2] - y[2], x[3] - y[3]
  if c < 0 then c = c + B; b = b - 1 end
  if b < 0 then b = b + B; a = a - 1 end
  return {a, b, c}
end
local function is_negative(v) return v[1] < 0 end
local function is_zero(v) return v[1] == 0 and v[2] == 0 and v[3] == 0 end
local P = ARGV[1]
local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local function integer(n) return string.format('%.0f', n) end
local function shift(scope, by, sign)
  local key = P .. 'v:' .. scope
  local v = parse(redis.call('GET', key))
  v = sign > 0 and add(v, by) or sub(v, by)
  if is_zero(v) then redis.call('DEL', key) else redis.call('SET', key, text(v)) end
end
local function finish(id, state)
  local key = P .. 'r:' .. id
  local r = redis.call('HMGET', key, 'left', 'scopes', 'expires')
  local left = parse(r[1])
  for _, scope in ipairs(cjson.decode(r[2])) do shift(scope, left, -1) end
  redis.call('HSET', key, 'left', '0:0:0', 'state', state)
  redis.call('ZREM', P .. 'x', id)
  redis.call('PEXPIRE', key, integer(tonumber(r[3]) + KEPT - now))
end
local function purge()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'x', '-inf', integer(now), 'LIMIT', 0, 1000)) do
    finish(id, 'expired')
  end
end
local function record(id)
  local r = redis.call('HMGET', P .. 'r:' .. id, 'state', 'quantity', 'left', 'dimensions', 'lease', 'expires', 'scopes')
  if not r[1] then return false end
  if r[1] == 'active' and tonumber(r[6]) <= now then r[1] = 'expired' end
  return {id, unpack(r)}
end
local function make(id, state, quantity, left, dimensions, lease, expires, scopes)
  local key = P .. 'r:' .. id
  redis.call('HSET', key, 'state', state, 'quantity', quantity, 'left', left, 'dimensions', dimensions,
    'lease', lease, 'expires', integer(expires), 'scopes', scopes)
  if state == 'active' then
    local units = parse(left)
    for _, scope in ipairs(cjson.decode(scopes)) do shift(scope, units, 1) end
    redis.call('ZADD', P .. 'x', integer(expires + GRACE), id)
  else
    redis.call('PEXPIRE', key, integer(expires + KEPT - now))
  end
end
local function close(id, state)
  local was = redis.call('HGET', P .. 'r:' .. id, 'state')
  if was == 'active' then
    finish(id, state)
  elseif was == 'expired' and state == 'committed' then
    redis.call('HSET', P .. 'r:' .. id, 'state', state)
  end
end
""".replace("KEPT", str(KEPT_MS)).replace("GRACE", str(GRACE_MS))

CHECK: Final = (
    _COMMON
    + """
purge()
local quantity = parse(ARGV[3])
local n = tonumber(ARGV[4])
local fits, answer = true, {}
for i = 0, n - 1 do
  local used = redis.call('GET', P .. 'u:' .. ARGV[5 + 3 * i])
  if not used then
    fits = false
  elseif ARGV[7 + 3 * i] ~= '' then
    local total = add(add(parse(used), parse(redis.call('GET', P .. 'v:' .. ARGV[6 + 3 * i]))), quantity)
    if is_negative(sub(parse(ARGV[7 + 3 * i]), total)) then fits = false end
  end
  answer[i + 1] = used
end
local at = 5 + 3 * n
local id, was_made, found = ARGV[at], 0, false
if id ~= '' then
  found = record(id)
  if not found and fits then
    make(id, 'active', ARGV[3], ARGV[3], ARGV[at + 3], ARGV[at + 1], now + tonumber(ARGV[at + 2]), ARGV[at + 4])
    found, was_made = record(id), 1
  end
end
local held = {}
for i = 0, n - 1 do held[i + 1] = redis.call('GET', P .. 'v:' .. ARGV[6 + 3 * i]) end
return {answer, held, found, was_made}
"""
)

COUNT: Final = (
    _COMMON
    + """
local last = tonumber(redis.call('HGET', P .. 'n', ARGV[3]) or '-1')
if last >= tonumber(ARGV[4]) then return {{}, {}} end
redis.call('HSET', P .. 'n', ARGV[3], ARGV[4])
redis.call('PEXPIRE', P .. 'n', 86400000)
local missing, settled = {}, {}
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local key = P .. 'u:' .. ARGV[at]
  local used = redis.call('GET', key)
  if used then
    redis.call('SET', key, text(add(parse(used), parse(ARGV[at + 1]))), 'KEEPTTL')
  else
    missing[#missing + 1] = ARGV[at]
  end
  at = at + 2
end
for _ = 1, tonumber(ARGV[at]) do
  local id, amount, is_commit = ARGV[at + 1], parse(ARGV[at + 2]), ARGV[at + 3] == '1'
  at = at + 3
  local key = P .. 'r:' .. id
  local r = redis.call('HMGET', key, 'state', 'lease', 'left', 'scopes')
  if is_commit then
    close(id, 'committed')
  elseif r[1] == 'active' and r[2] == '0' then
    finish(id, 'settled')
  elseif r[1] == 'active' and not is_negative(amount) then
    local left = sub(parse(r[3]), amount)
    local taken = amount
    if is_negative(left) then left, taken = {0, 0, 0}, parse(r[3]) end
    for _, scope in ipairs(cjson.decode(r[4])) do shift(scope, taken, -1) end
    redis.call('HSET', key, 'left', text(left))
  end
  local found = record(id)
  if found then settled[#settled + 1] = found end
end
return {missing, settled}
"""
)

TOUCH: Final = (
    _COMMON
    + """
purge()
local id, what, value = ARGV[3], ARGV[4], ARGV[5]
local key = P .. 'r:' .. id
local r = redis.call('HMGET', key, 'state', 'expires', 'left', 'scopes')
if not r[1] then return false end
if what == 'end' then
  close(id, value)
elseif what == 'extend' and r[1] == 'active' and now < tonumber(r[2]) then
  local expires = now + tonumber(value)
  redis.call('HSET', key, 'expires', integer(expires))
  redis.call('ZADD', P .. 'x', integer(expires + GRACE), id)
elseif what == 'hold' and r[1] == 'active' then
  local scopes = cjson.decode(r[4])
  for _, scope in ipairs(scopes) do if scope == value then return record(id) end end
  scopes[#scopes + 1] = value
  redis.call('HSET', key, 'scopes', cjson.encode(scopes))
  shift(value, parse(r[3]), 1)
end
return record(id)
""".replace("GRACE", str(GRACE_MS))
)

ACTIVE: Final = (
    _COMMON
    + """
purge()
local found = {}
for _, id in ipairs(redis.call('ZRANGE', P .. 'x', 0, -1)) do found[#found + 1] = record(id) end
return found
"""
)

CHANGE: Final = (
    _COMMON
    + """
local what = ARGV[3]
if what == 'restore' then
  if redis.call('EXISTS', P .. 'r:' .. ARGV[4]) == 0 then
    make(ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]), ARGV[11])
  end
  return 1
end
local key = P .. 'u:' .. ARGV[4]
if what == 'put' then
  redis.call('SET', key, ARGV[5])
  redis.call('PEXPIREAT', key, ARGV[6])
elseif what == 'adjust' then
  local used = redis.call('GET', key)
  if used then redis.call('SET', key, text(add(parse(used), parse(ARGV[5]))), 'KEEPTTL') end
elseif what == 'drop' then
  redis.call('DEL', key)
end
return 1
"""
)
