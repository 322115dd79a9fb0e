-- name: insert_event
insert into mana.security_events (account_id, at, action, ok, session_id, detail)
values (mana.current_account(), $1, $2, $3, $4, $5)

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
