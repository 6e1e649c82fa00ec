import { createHash } from 'node:crypto'

/**
 * The steps of the protocol that must be atomic for a key. Each script goes over its keys one by one: nothing
 * relies on several keys changing together, they only share the trip. Effect replication (Redis 5) is needed,
 * nothing newer than 6.2. Why the protocol is as it is: docs/protocol.md.
 */
export interface Script {
  readonly name: string
  readonly source: string
  readonly sha: string
}

function script(name: string, source: string): Script {
  return { name, source, sha: createHash('sha1').update(source).digest('hex') }
}

// KEYS: n keys. ARGV: token, lease ms, then n times schema number, epoch.
// Reply, per key: nil = granted, else the record that is there.
// Anything that is no record of ours, a hash or list included (pcall: GET refuses those), is taken over.
// A value of a higher schema is left alone, so that old and new code side by side do not thrash. Compared as numbers:
// Lua compares texts by the locale of the server, which is not the order of their bytes.
export const ACQUIRE = script(
  'acquire',
  `local out = {}
for i, key in ipairs(KEYS) do
  local c = redis.pcall('GET', key)
  local epoch = ARGV[2 * i + 2]
  local keep = false
  if type(c) == 'string' then
    local t = string.byte(c)
    if t == 76 then keep = #c == 21 and string.sub(c, 18) == epoch
    elseif t == 87 then keep = #c > 1 and (#c - 1) % 29 == 0
    elseif t == 86 or t == 78 then
      keep = string.sub(c, 4, 7) == epoch and string.byte(c, 2) * 256 + string.byte(c, 3) >= tonumber(ARGV[2 * i + 1])
    end
  end
  if keep then out[i] = c
  else
    redis.call('SET', key, 'L' .. ARGV[1] .. epoch, 'PX', ARGV[2])
    out[i] = false
  end
end
return out`,
)

// KEYS: n keys. ARGV: token, then n times record, ttl ms, epoch. An empty record gives the lease back. Reply: how many were stored.
// A write between our SELECT and this fill took our lease away: the old row is refused.
export const FILL = script(
  'fill',
  `local stored = 0
for i, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == 'L' .. ARGV[1] .. ARGV[3 * i + 1] then
    local record = ARGV[3 * i - 1]
    if record == '' then redis.call('DEL', key)
    else
      redis.call('SET', key, record, 'PX', ARGV[3 * i])
      stored = stored + 1
    end
  end
end
return stored`,
)

// KEYS: n keys. ARGV: token, ttl ms. Adds or renews one intent; expired ones of others are dropped on the way.
// The deadlines are by the clock of Redis, so no two writers' clocks are compared.
export const INTEND = script(
  'intend',
  `local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, key in ipairs(KEYS) do
  local c = redis.pcall('GET', key)
  local last = now + ARGV[2]
  local rec = ARGV[1] .. string.format('%013.0f', last)
  if type(c) == 'string' and string.byte(c) == 87 then
    for i = 2, #c, 29 do
      local e = tonumber(string.sub(c, i + 16, i + 28))
      if e and e > now and string.sub(c, i, i + 15) ~= ARGV[1] then
        rec = rec .. string.sub(c, i, i + 28)
        if e > last then last = e end
      end
    end
  end
  redis.call('SET', key, 'W' .. rec, 'PX', string.format('%.0f', last - now))
end
return #KEYS`,
)

// KEYS: n keys. ARGV: token ('' = none), '1' committed / '0' rolled back. Reply: how many keys are free now.
// Takes away the own intent only: while others are about to commit, the key stays busy.
export const CLEAR = script(
  'clear',
  `local freed = 0
local now
for _, key in ipairs(KEYS) do
  local c = redis.pcall('GET', key)
  if not c then freed = freed + 1
  elseif type(c) ~= 'string' or string.byte(c) ~= 87 then
    if ARGV[2] == '1' then
      redis.call('DEL', key)
      freed = freed + 1
    end
  elseif ARGV[1] ~= '' then
    if not now then
      local t = redis.call('TIME')
      now = t[1] * 1000 + math.floor(t[2] / 1000)
    end
    local rec, last, mine = '', 0, false
    for i = 2, #c, 29 do
      local e = tonumber(string.sub(c, i + 16, i + 28))
      if string.sub(c, i, i + 15) == ARGV[1] then mine = true
      elseif e and e > now then
        rec = rec .. string.sub(c, i, i + 28)
        if e > last then last = e end
      end
    end
    if rec == '' then
      redis.call('DEL', key)
      freed = freed + 1
    elseif mine then redis.call('SET', key, 'W' .. rec, 'PX', string.format('%.0f', last - now)) end
  end
end
return freed`,
)

// KEYS: n times key, key of its stale copy. ARGV: n times ms.
export const STALE = script(
  'stale',
  `for i = 1, #KEYS, 2 do
  local c = redis.pcall('GET', KEYS[i])
  local t = type(c) == 'string' and string.byte(c)
  if t == 86 or t == 78 then redis.call('SET', KEYS[i + 1], c, 'PX', ARGV[(i + 1) / 2]) end
  if c and t ~= 87 then redis.call('DEL', KEYS[i]) end
end
return 1`,
)

// KEYS: the marks (see marks.ts). ARGV: 8 characters that were never used, ttl ms, a prefix to mark; '' marks none, but
// sees to it that there is a base. Reply: the marks. To lose them is to forget everything, so they are kept for long.
export const MARK = script(
  'mark',
  `local c = redis.pcall('GET', KEYS[1])
if type(c) == 'string' and ARGV[3] == '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return c
end
local out = ARGV[1]
if type(c) == 'string' then
  out = string.sub(c, 1, 8)
  local i = 9
  while i <= #c do
    local n = tonumber(string.sub(c, i + 8, i + 11))
    if not n then
      out = ARGV[1]
      break
    end
    if string.sub(c, i + 12, i + 11 + n) ~= ARGV[3] then out = out .. string.sub(c, i, i + 11 + n) end
    i = i + 12 + n
  end
  out = out .. ARGV[1] .. string.format('%04d', #ARGV[3]) .. ARGV[3]
end
redis.call('SET', KEYS[1], out, 'PX', ARGV[2])
return out`,
)

// KEYS: the name. ARGV: candidate, ttl ms. Reply: 1 = leads, 0 = somebody else does. What is no string is nobody.
export const LEAD = script(
  'lead',
  `local leader = redis.pcall('GET', KEYS[1])
if type(leader) == 'string' and leader ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`,
)

// KEYS: one that nobody uses. Reply: the commands of the scripts above that the user may not run. Changes nothing.
export const RIGHTS = script(
  'rights',
  `local out = {}
local key = KEYS[1]
for _, c in ipairs({{'GET', key}, {'SET', key, '', 'XX', 'PX', '1'}, {'DEL', key}, {'PEXPIRE', key, '1'}, {'TIME'}}) do
  local r = redis.pcall(unpack(c))
  local e = type(r) == 'table' and r.err
  if e and (string.find(e, 'NOPERM', 1, true) or string.find(e, 'The user executing', 1, true)) then
    out[#out + 1] = string.lower(c[1])
  end
end
return out`,
)

export const SCRIPTS: readonly Script[] = [ACQUIRE, FILL, INTEND, CLEAR, STALE, MARK, LEAD]
