/* fuzz-answer.c - whatever an agent answers, the command prints it or says why not, and ends with an exit code.
 *
 * Input: a byte that chooses verb and --json; the rest is what a real listener on a Unix socket says, then it hangs up. */
#include "cli/verbs.h"
#include "fuzz.h"

#include <glib.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[] = "/tmp/vcft-fuzz-answer-XXXXXX";
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static int listener;

int cli_fail(const struct cli *cli, GError *error)
{
	demand(error != NULL);
	fprintf(stdout, "%s %d\n", error->message, cli->json);
	g_error_free(error);
	return CLI_FAILED;
}

void cli_print(json_t *object)
{
	char *line = json_dumps(object, JSON_COMPACT);
	fputs(line ? line : "{}", stdout);
	free(line);
	json_decref(object);
}

static void clean(void)
{
	unlink(address.sun_path);
	rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	demand(mkdtemp(dir) && freopen("/dev/null", "w", stdout));
	g_snprintf(address.sun_path, sizeof address.sun_path, "%s/s", dir);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	demand(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
	atexit(clean);
	return 0;
}

static void *say(void *data)
{
	struct input *in = data;
	char request[1024];
	int fd = accept(listener, NULL, NULL);
	demand(fd >= 0 && recv(fd, request, sizeof request, 0) > 0);
	if (in->left)
		(void)!send(fd, in->at, in->left, MSG_NOSIGNAL);
	close(fd);
	return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static int (*const verbs[])(const struct cli *) = { verb_status, verb_events, verb_checkpoint, verb_down };
	char *none[] = { NULL }, bare[] = "vm1";
	struct input in = { data, n };
	uint64_t choice = take(&in, 1);
	struct cli cli = { .socket = address.sun_path, .json = choice & 4 ? TRUE : FALSE, .follow = choice & 8 ? TRUE : FALSE, .arguments = none };
	if ((choice & 3) == 2 && choice & 16)
		cli.bare = bare;
	pthread_t thread;
	demand(pthread_create(&thread, NULL, say, &in) == 0);
	int status = verbs[choice & 3](&cli);
	demand(status == CLI_OK || status == CLI_FAILED);
	pthread_join(thread, NULL);
	return 0;
}
