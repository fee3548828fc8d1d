/* test-cut.c - the colour rule of core/cut.h, case by case. */
#include "core/cut.h"

#include <glib.h>

static enum cut_verdict rule(uint64_t fg, uint64_t colour, uint64_t rg, uint64_t epoch)
{
	return cut_rule((struct generation){ fg }, epoch_of(colour), (struct generation){ rg }, epoch_of(epoch));
}

static void same_epoch_is_delivered(void) { g_assert_cmpint(rule(2, 5, 2, 5), ==, CUT_DELIVER); }

static void older_colour_is_recorded(void)
{
	g_assert_cmpint(rule(2, 4, 2, 5), ==, CUT_DELIVER_AND_RECORD);
	g_assert_cmpint(rule(2, 0, 2, UINT64_MAX), ==, CUT_DELIVER_AND_RECORD);
}

static void newer_colour_is_held(void)
{
	g_assert_cmpint(rule(2, 6, 2, 5), ==, CUT_HOLD);
	g_assert_cmpint(rule(2, UINT64_MAX, 2, 0), ==, CUT_HOLD);
}

static void other_generation_is_dropped(void)
{
	g_assert_cmpint(rule(1, 5, 2, 5), ==, CUT_DROP);
	g_assert_cmpint(rule(3, 4, 2, 5), ==, CUT_DROP);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/cut/same-epoch-is-delivered", same_epoch_is_delivered);
	g_test_add_func("/cut/older-colour-is-recorded", older_colour_is_recorded);
	g_test_add_func("/cut/newer-colour-is-held", newer_colour_is_held);
	g_test_add_func("/cut/other-generation-is-dropped", other_generation_is_dropped);
	return g_test_run();
}
