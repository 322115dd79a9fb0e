-- What all calls of an occurrence came to, in one place. It is put in line where it is called, so it
-- has no search path of its own.
create function mana_ai.used_by(p_space text, p_occurrence text)
  returns table (tokens bigint, cost bigint, confirmed_tokens bigint, confirmed_cost bigint)
  language sql stable parallel safe
  as $$
  select coalesce(pg_catalog.sum(t.spent), 0)::bigint, coalesce(pg_catalog.sum(t.cost), 0)::bigint,
         coalesce(pg_catalog.sum(t.confirmed_tokens), 0)::bigint,
         coalesce(pg_catalog.sum(t.confirmed_cost), 0)::bigint
    from mana_ai.token_usage t
   where t.space_id = p_space and t.occurrence_id = p_occurrence
$$;
grant execute on function mana_ai.used_by(text, text) to mana_runner;
