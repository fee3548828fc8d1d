/* test-placement.c - PL1-PL3 of core/placement.h. */
#include "core/placement.h"

#include <glib.h>

#define H(n) host_bit((struct host_id){ n })

static struct host_id preferred[4], live[4];
static host_mask usable[4], avoid[4];
static struct message_placement out[4];

static void reset(void)
{
	for (int v = 0; v < 4; v++) {
		preferred[v] = live[v] = (struct host_id){ 0 };
		usable[v] = avoid[v] = 0;
		out[v] = (struct message_placement){ 0 };
	}
}

static bool recover(uint32_t vms, uint64_t c, host_mask hosts, struct vm_id *lost)
{
	struct placement_input in = { vms, epoch_of(c), hosts, preferred, usable, live, avoid };
	return placement_recover(&in, out, lost);
}

static void power_off_is_held_by_all(void)
{
	struct vm_id lost;
	reset();
	preferred[1].n = 2;
	g_assert_true(recover(4, 0, H(1) | H(2) | H(3), &lost));
	g_assert_cmpuint(out[1].host.n, ==, 2);
	g_assert_cmpuint(out[0].host.n, ==, 1);
	g_assert_cmpuint(out[2].host.n, ==, 3);
	g_assert_cmpuint(out[3].host.n, ==, 1);
	g_assert_cmpuint(out[0].backups, ==, 0);
}

static void only_exact_holders_run_it(void)
{
	struct vm_id lost = { 9 };
	reset();
	usable[0] = H(2) | H(3);
	usable[1] = H(4);
	preferred[0].n = live[0].n = 1;
	g_assert_false(recover(2, 7, H(1) | H(2) | H(3), &lost));
	g_assert_cmpuint(lost.n, ==, 1);
	usable[1] = H(3);
	g_assert_true(recover(2, 7, H(1) | H(2) | H(3), &lost));
	g_assert_cmpuint(out[1].host.n, ==, 3);
	g_assert_cmpuint(out[0].host.n, ==, 2);
	g_assert_cmpuint(out[0].backups, ==, H(3));
}

static void live_before_preferred_before_load(void)
{
	struct vm_id lost;
	reset();
	usable[0] = usable[1] = usable[2] = H(1) | H(2) | H(3);
	live[0].n = 3, preferred[0].n = 1;
	preferred[1].n = 3;
	g_assert_true(recover(3, 7, H(1) | H(2) | H(3), &lost));
	g_assert_cmpuint(out[0].host.n, ==, 3);
	g_assert_cmpuint(out[1].host.n, ==, 3);
	g_assert_cmpuint(out[2].host.n, ==, 1);
}

static void failed_hosts_are_the_last_choice(void)
{
	struct vm_id lost;
	reset();
	usable[0] = H(1) | H(2);
	live[0].n = 1;
	avoid[0] = H(1);
	g_assert_true(recover(1, 7, H(1) | H(2), &lost));
	g_assert_cmpuint(out[0].host.n, ==, 2);
	avoid[0] = H(1) | H(2);
	g_assert_true(recover(1, 7, H(1) | H(2), &lost));
	g_assert_cmpuint(out[0].host.n, ==, 1);
}

static void backups_spread_and_never_at_home(void)
{
	host_mask complete[4] = { 0 }, suspect[4] = { 0 };
	reset();
	for (uint32_t v = 0; v < 4; v++)
		out[v].host.n = 1 + v % 3;
	placement_backups(4, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(2));
	g_assert_cmpuint(out[1].backups, ==, H(3));
	g_assert_cmpuint(out[2].backups, ==, H(1));
	g_assert_cmpuint(out[3].backups, ==, H(2));
	placement_backups(4, 5, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(2) | H(3));
}

static void complete_backups_are_kept(void)
{
	host_mask complete[4] = { H(3) }, suspect[4] = { 0 };
	reset();
	out[0].host.n = 1;
	placement_backups(1, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(3));
	suspect[0] = H(3);
	placement_backups(1, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(2));
	suspect[0] = H(2) | H(3);
	placement_backups(1, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, 0);
}

static void backups_being_filled_are_kept(void)
{
	host_mask complete[4] = { 0 }, suspect[4] = { 0 };
	reset();
	out[0].host.n = out[1].host.n = 1;
	out[0].backups = H(3);
	placement_backups(2, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(3));
	g_assert_cmpuint(out[1].backups, ==, H(2));
	complete[1] = H(2);
	placement_backups(2, 1, H(1) | H(2) | H(3), complete, suspect, out);
	g_assert_cmpuint(out[0].backups, ==, H(3));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/placement/PL1-power-off-is-held-by-all", power_off_is_held_by_all);
	g_test_add_func("/placement/PL1-only-exact-holders-run-it", only_exact_holders_run_it);
	g_test_add_func("/placement/PL2-live-before-preferred-before-load", live_before_preferred_before_load);
	g_test_add_func("/placement/PL2-failed-hosts-are-the-last-choice", failed_hosts_are_the_last_choice);
	g_test_add_func("/placement/PL3-backups-spread-and-never-at-home", backups_spread_and_never_at_home);
	g_test_add_func("/placement/PL3-complete-backups-are-kept", complete_backups_are_kept);
	g_test_add_func("/placement/PL3-backups-being-filled-are-kept", backups_being_filled_are_kept);
	return g_test_run();
}
