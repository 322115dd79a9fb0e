-- name: one
select * from mana.letters where account_id = mana.current_account() and address <> ''

-- name: ask
-- Where no code may go out to this address, all else is the same.
insert into mana.letters as l
  (account_id, address, code_hash, code_until, codes_sent, codes_since, place)
values (mana.current_account(), $1, $2, clock_timestamp() + interval '30 minutes', 1,
        clock_timestamp(), $4)
on conflict (account_id) do update set
  address = excluded.address, code_hash = excluded.code_hash, code_until = excluded.code_until,
  code_tries = 0, confirmed = false, enabled = false, waiting = false, due_at = null,
  place = excluded.place, code = null, code_due_at = null, code_attempts = 0,
  codes_sent = case when l.codes_since > clock_timestamp() - interval '1 hour'
                    then l.codes_sent + 1 else 1 end,
  codes_since = case when l.codes_since > clock_timestamp() - interval '1 hour'
                     then l.codes_since else clock_timestamp() end
where l.codes_sent < $3 or l.codes_since <= clock_timestamp() - interval '1 hour'
returning true

-- name: post_code
with counted as materialized (select mana.count_code($2, $3) as may), put as (
  update mana.letters
     set code = case when c.may then $1 end,
         code_due_at = case when c.may then clock_timestamp() end
    from counted c where account_id = mana.current_account()
  returning 1)
select pg_notify('mana_letters', '') from put

-- name: try
update mana.letters set code_tries = code_tries + 1
 where account_id = mana.current_account() and code_hash is not null
   and code_until > clock_timestamp() and code_tries < $1
returning code_hash

-- name: confirm
-- Only the address that this code went to: another may have been given meanwhile.
update mana.letters
   set confirmed = true, enabled = true, code_hash = null, code_until = null
 where account_id = mana.current_account() and code_hash = $1
returning true

-- name: switch
update mana.letters
   set enabled = $1, waiting = waiting and $1, due_at = case when $1 then due_at end
 where account_id = mana.current_account() and confirmed
returning true

-- name: forget
-- How many codes and letters went out stays, so that nobody asks for more by beginning anew.
update mana.letters
   set address = '', place = null, code_hash = null, code_until = null, code = null,
       code_due_at = null, confirmed = false, enabled = false, waiting = false, due_at = null,
       attempts = 0
 where account_id = mana.current_account()

-- name: wait
with put as (
  update mana.letters
     set waiting = true,
         due_at = greatest(clock_timestamp(), coalesce(sent_at, '-infinity') + interval '1 hour')
   where account_id = mana.current_account() and enabled and not waiting
  returning 1)
select pg_notify('mana_letters', '') from put

-- name: take
select * from mana.take_letters($1)

-- name: end
select mana.end_letter($1, $2, $3)

-- name: end_code
select mana.end_code($1, $2)

-- name: next
select (extract(epoch from mana.next_letter() - clock_timestamp()) * 1000)::bigint
