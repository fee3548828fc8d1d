/* test-fault.c - F1-F3: faults fire as often as they were told to, by name. */
#include "base/fault.h"

#include <string.h>

static void test_f2_counts(void)
{
	fault_clear();
	g_assert_false(fault(FAULT_SEND_TORN));
	fault_set(FAULT_SEND_TORN, 2);
	g_assert_false(fault(FAULT_DISK_SEAL));
	g_assert_true(fault(FAULT_SEND_TORN));
	g_assert_true(fault(FAULT_SEND_TORN));
	g_assert_false(fault(FAULT_SEND_TORN));
	g_assert_cmpuint(fault_fired(FAULT_SEND_TORN), ==, 2);
	g_assert_cmpuint(fault_on_count, ==, 0);
	fault_set(FAULT_SEND_TORN, FAULT_ALWAYS);
	for (int i = 0; i < 100; i++)
		g_assert_true(fault(FAULT_SEND_TORN));
	fault_set(FAULT_SEND_TORN, 0);
	g_assert_false(fault(FAULT_SEND_TORN));
	g_assert_cmpuint(fault_on_count, ==, 0);
}

static void test_f3_text(void)
{
	fault_clear();
	g_assert_true(fault_set_text("", NULL));
	g_assert_true(fault_set_text("send-torn,disk-seal:2,stage-refused:*,", NULL));
	g_assert_true(fault(FAULT_SEND_TORN) && !fault(FAULT_SEND_TORN));
	g_assert_true(fault(FAULT_DISK_SEAL) && fault(FAULT_DISK_SEAL) && !fault(FAULT_DISK_SEAL));
	g_assert_true(fault(FAULT_STAGE_REFUSED) && fault(FAULT_STAGE_REFUSED));
	fault_clear();
	const struct { const char *text, *says; } bad[] = {
		{ "sendtorn", "no fault has the name 'sendtorn'" }, { "send-torn:x", "'x' is no count" }, { "send-torn:-1", "'-1' is no count" },
		{ "disk-seal,:3", "no fault has the name ''" },
	};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) error = NULL;
		g_assert_false(fault_set_text(bad[i].text, &error));
		g_assert_nonnull(strstr(error->message, bad[i].says));
		g_assert_cmpuint(fault_on_count, ==, 0);
	}
}

static void test_environment(void)
{
	g_autoptr(GError) error = NULL;
	fault_clear();
	g_unsetenv("VIRTCFT_FAULTS");
	g_assert_true(fault_read_environment(NULL));
	g_setenv("VIRTCFT_FAULTS", "disk-seal", TRUE);
	g_assert_true(fault_read_environment(NULL));
	g_assert_true(fault(FAULT_DISK_SEAL));
	g_setenv("VIRTCFT_FAULTS", "nothing", TRUE);
	g_assert_false(fault_read_environment(&error));
	g_assert_true(g_str_has_prefix(error->message, "VIRTCFT_FAULTS: no fault has the name 'nothing'"));
}

static void test_table(void)
{
	for (enum fault f = 0; f < FAULT_END; f++) {
		g_assert_cmpint(fault_find(fault_name(f)), ==, f);
		g_assert_nonnull(fault_text(f));
		g_assert_true(fault_kind(f) == FAULT_HARD || fault_kind(f) == FAULT_SOFT);
	}
	g_assert_cmpint(fault_find("none"), ==, FAULT_END);
	g_assert_null(fault_name(FAULT_END));
}

static void *fire(void *sum)
{
	for (int i = 0; i < 20000; i++)
		if (fault(FAULT_TUNNEL_TORN))
			g_atomic_int_inc((int *)sum);
	return NULL;
}

/* F2 with threads: no firing is lost, none comes twice. */
static void test_f2_threads(void)
{
	GThread *threads[4];
	int sum = 0;
	fault_clear();
	fault_set(FAULT_TUNNEL_TORN, 10000);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		threads[i] = g_thread_new("fire", fire, &sum);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		g_thread_join(threads[i]);
	g_assert_cmpint(sum, ==, 10000);
	g_assert_cmpuint(fault_on_count, ==, 0);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/base/fault/F2-counts", test_f2_counts);
	g_test_add_func("/base/fault/F2-threads", test_f2_threads);
	g_test_add_func("/base/fault/F3-text", test_f3_text);
	g_test_add_func("/base/fault/environment", test_environment);
	g_test_add_func("/base/fault/table", test_table);
	return g_test_run();
}
