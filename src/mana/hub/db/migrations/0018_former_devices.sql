-- What somebody decided while they were a member stays decided: those who stay can ask for the
-- certificates of who has left, of devices that there were by then. A door, as in 0002.
create policy door on mana.departures for select to current_user
  using (current_setting('app.door', true) = 'open');
create policy door on mana.memberships for select to current_user
  using (current_setting('app.door', true) = 'open');
create policy door on mana.devices for select to current_user
  using (current_setting('app.door', true) = 'open');

create function mana.former_devices(p_space text) returns setof mana.devices
  language plpgsql volatile security definer
  set search_path = ''
as $$
begin
  perform pg_catalog.set_config('app.door', 'open', true);
  return query
    select d.* from mana.departures p
      join mana.devices d on d.account_id = p.account_id and d.registered_at <= p.departed_at
     where p.space_id = p_space
       and exists (select from mana.memberships m
                    where m.space_id = p_space and m.account_id = mana.current_account());
end
$$;
revoke all on function mana.former_devices(text) from public;
grant execute on function mana.former_devices(text) to mana_app;
