-- name: insert_event
insert into mana.security_events (account_id, at, action, ok, session_id, detail)
values (mana.current_account(), $1, $2, $3, $4, $5)

-- name: insert_refusal
insert into mana.security_events (account_id, at, action, ok, session_id, detail)
select mana.current_account(), $1, $2, false, $3, $4
 where (select count(*) from mana.security_events e
         where e.account_id = mana.current_account() and e.at <= $1
           and e.at > $1 - interval '1 day' and e.action = $2 and not e.ok and e.detail = $4) < $5

-- name: events
select e.at, e.action, e.ok, e.session_id, e.detail from mana.security_events e
 where e.account_id = mana.current_account() and e.at < $1
   and e.at >= (select min(page.at) from (
         select p.at from mana.security_events p
          where p.account_id = mana.current_account() and p.at < $1
          order by p.at desc limit $2) page)
 order by e.at desc, e.number desc

-- name: has_events
select exists (select from mana.security_events
                where account_id = mana.current_account() and at < $1)

-- name: state_of
select case when revoked then 'revoked' when ended_at is not null then 'ended' else 'standing' end
  from mana.sessions where session_id = $1 and account_id = mana.current_account()

-- name: sessions
select session_id, created_at, coalesce(seen_at, created_at) as seen_at, name, device_id
  from mana.sessions
 where account_id = mana.current_account() and ended_at is null
   and coalesce(seen_at, created_at) > $1
 order by created_at desc, session_id

-- name: end_session
update mana.sessions set ended_at = $2
 where session_id = $1 and account_id = mana.current_account() and ended_at is null

-- name: signing_key
select signing_key from mana.accounts where account_id = mana.current_account() for share

-- name: device
select revoked_at from mana.devices
 where device_id = $1 and account_id = mana.current_account() for update

-- name: revoke_device
update mana.devices set revoked_at = $2, revocation = $3
 where device_id = $1 and account_id = mana.current_account()

-- name: end_sessions_of
update mana.sessions set revoked = true, ended_at = coalesce(ended_at, $2)
 where device_id = $1 and account_id = mana.current_account()
returning session_id
