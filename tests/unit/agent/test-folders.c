/* test-folders.c - what the agent's start does to the folders of its settings: it takes what is its own, and refuses what is not. */
#include "agent/agent.h"
#include "base/config.h"

#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct place { char *folder, *ram; GMainLoop *loop; };

static void set_up(struct place *p, gconstpointer data)
{
	(void)data;
	p->folder = g_strdup_printf("/dev/shm/vcft-folders-%d", getpid());
	p->ram = g_build_filename(p->folder, "ram", NULL);
	p->loop = g_main_loop_new(NULL, FALSE);
	g_assert_cmpint(g_mkdir(p->folder, 0700), ==, 0);
}

static void tear_down(struct place *p, gconstpointer data)
{
	(void)data;
	g_autofree char *remove = g_strdup_printf("rm -rf '%s'", p->folder);
	g_assert_true(g_spawn_command_line_sync(remove, NULL, NULL, NULL, NULL));
	g_main_loop_unref(p->loop);
	g_free(p->folder);
	g_free(p->ram);
}

static struct config_agent *settings(const struct place *p, const char *ram_dir)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *text = g_strdup_printf("name: host1\nrun_dir: %s/run\nram_dir: %s\nstate_dir: %s/state\n", p->folder, ram_dir, p->folder);
	struct config_agent *config = config_agent_parse(text, strlen(text), "virtcftd.yaml", &error);
	g_assert_no_error(error);
	return config;
}

static void refused(const struct place *p, const char *ram_dir, const char *why)
{
	g_autoptr(GError) error = NULL;
	struct config_agent *config = settings(p, ram_dir);
	g_assert_null(agent_new(config, p->loop, &error));
	g_assert_nonnull(error);
	g_assert_nonnull(strstr(error->message, why));
	config_agent_free(config);
}

static char *put(const struct place *p, const char *folder, const char *name)
{
	g_autofree char *in = g_build_filename(p->ram, folder, NULL);
	char *path = g_build_filename(in, name, NULL);
	g_assert_cmpint(g_mkdir_with_parents(in, 0711), ==, 0);
	g_assert_true(g_file_set_contents(path, "x", 1, NULL));
	return path;
}

static bool there(const char *path) { return g_file_test(path, G_FILE_TEST_EXISTS); }

/* /proc stands for any file system that is none; the nearest folder that is there counts. */
static void test_memory_is_kept_on_a_tmpfs_alone(struct place *p, gconstpointer data)
{
	(void)data;
	refused(p, "/proc/virtcft/ram", "is on no tmpfs");
}

static void test_a_folder_of_all_is_left_alone(struct place *p, gconstpointer data)
{
	(void)data;
	g_autofree char *file = put(p, "a", "image");
	struct stat st;
	g_assert_cmpint(g_chmod(p->ram, 01777), ==, 0);
	refused(p, p->ram, "others may write there");
	g_assert_true(there(file));
	g_assert_cmpint(g_stat(p->ram, &st), ==, 0);
	g_assert_cmpint(st.st_mode & 07777, ==, 01777);
}

static void test_what_an_agent_has_left_is_removed_and_nothing_else(struct place *p, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	g_autofree char *image = put(p, "a", "image"), *ram = put(p, "a", "ram.193"), *folder = g_path_get_dirname(image);
	g_autofree char *mixed = put(p, "b", "ram.1"), *other = put(p, "b", "notes"), *top = put(p, "", "notes"), *deep = put(p, "c/d", "image");
	struct config_agent *config = settings(p, p->ram);
	struct agent *agent = agent_new(config, p->loop, &error);
	g_assert_no_error(error);
	g_assert_false(there(image) || there(ram) || there(folder) || there(mixed));
	g_assert_true(there(other) && there(top) && there(deep));
	agent_free(agent);
	config_agent_free(config);
}

static void test_pm3_a_second_agent_takes_nothing(struct place *p, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	struct config_agent *config = settings(p, p->ram);
	struct agent *agent = agent_new(config, p->loop, &error);
	g_assert_no_error(error);
	g_autofree char *image = put(p, "a", "image");
	refused(p, p->ram, "an agent runs here already");
	g_assert_true(there(image));
	agent_free(agent);
	config_agent_free(config);
}

static void add(const char *path, void (*test)(struct place *, gconstpointer)) { g_test_add(path, struct place, NULL, set_up, test, tear_down); }

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	add("/agent/folders/memory-on-a-tmpfs", test_memory_is_kept_on_a_tmpfs_alone);
	add("/agent/folders/of-all-left-alone", test_a_folder_of_all_is_left_alone);
	add("/agent/folders/own-remains-removed", test_what_an_agent_has_left_is_removed_and_nothing_else);
	add("/agent/folders/PM3-second-agent", test_pm3_a_second_agent_takes_nothing);
	return g_test_run();
}
