-- name: audit_rows
select * from mana_ai.decrypt_audit
 where account_id = mana.current_account()
   and ($1::text is null or mission_id = $1) and ($2::text is null or table_name = $2)
   and ($3::text is null or status = $3) and ($4::text is null or ts >= $4)
   and ($5::text is null or ts < $5) and ($6::bigint is null or seq < $6)
 order by seq desc limit $7

-- name: audit_head
select seq, hash from mana_ai.audit_heads where account_id = $1

-- name: expire_grant
update mana_ai.grants
   set state = 'expired', ended_at = clock_timestamp(), wrapped_key = null, sealed_keys = null
 where grant_id = $1 and state = 'active' and expires_at <= clock_timestamp()

-- name: ended_grants
select grant_id, expires_at from mana_ai.end_grants()
