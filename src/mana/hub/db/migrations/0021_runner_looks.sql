-- The runner answers people too, about its audit: whoever asks must be in a session that stands.
create policy runner_looks on mana.sessions for select to mana_runner
  using (account_id = mana.current_account());
grant select (session_id, account_id, ended_at, revoked) on mana.sessions to mana_runner;
