/* Ready: an awaitable that has its answer, in place of a coroutine that would not suspend.

   It passes for a coroutine where one is asked for: it has send, throw and close, is registered as
   collections.abc.Coroutine, and warns if it was never awaited. An answer that nobody took is given back: a buffer
   returns to its cache. */

#include "_core.h"

struct Ready {
    PyObject_HEAD
    Core *core;
    PyObject *value; /* NULL once taken */
    PyObject *stop;  /* a StopIteration to use again, or NULL */
};

#define AGAIN "cannot reuse already awaited coroutine"

PyObject *ready_new(Core *core, PyObject *value) /* takes over the reference */
{
    Ready *ready;
    if (core->n_readies) {
        ready = core->readies[--core->n_readies];
        (void)PyObject_Init((PyObject *)ready, core->ready);
    } else if ((ready = PyObject_New(Ready, core->ready)) != NULL) {
        ready->core = core;
        ready->stop = NULL;
    } else {
        Py_DECREF(value);
        return NULL;
    }
    ready->value = value;
    return (PyObject *)ready;
}

void ready_clear_kept(Core *core)
{
    while (core->n_readies) {
        Ready *ready = core->readies[--core->n_readies];
        Py_XDECREF(ready->stop);
        PyObject_Free(ready);
    }
}

static int is_buffer(Ready *ready, PyObject *value)
{
    return PyObject_TypeCheck(value, ready->core->handle);
}

/* Give back what nobody took. -1 with an error. */
static int give_back(Ready *ready)
{
    PyObject *value = ready->value, *gone = NULL;
    ready->value = NULL;
    if (value == NULL)
        return 0;
    if (is_buffer(ready, value) && ((Handle *)value)->slot != NULL)
        gone = PyObject_CallMethodNoArgs(value, ready->core->let_go);
    else
        gone = Py_NewRef(Py_None);
    Py_DECREF(value);
    Py_XDECREF(gone);
    return gone == NULL ? -1 : 0;
}

static void ready_dealloc(PyObject *self)
{
    Ready *ready = (Ready *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (ready->value != NULL) {
        Pending pending;
        HOLD(pending);
        int buffer = is_buffer(ready, ready->value);
        if (give_back(ready))
            PyErr_WriteUnraisable(NULL);
        if (buffer &&
            PyErr_WarnEx(PyExc_RuntimeWarning, "coroutine 'Cache.alloc' was never awaited", 1))
            PyErr_WriteUnraisable(NULL);
        GO_ON(pending);
    }
    if (ready->stop != NULL) {
        PyStopIterationObject *stop = (PyStopIterationObject *)ready->stop;
        if (Py_REFCNT(stop) > 1) { /* somebody has caught it, so it is theirs */
            Py_CLEAR(ready->stop);
        } else {
            Py_CLEAR(stop->value);
            Py_CLEAR(stop->traceback);
            Py_CLEAR(stop->context);
            Py_CLEAR(stop->cause);
            Py_CLEAR(stop->dict);
#if PY_VERSION_HEX >= 0x030B0000
            Py_CLEAR(stop->notes);
#endif
        }
    }
    if (ready->core->n_readies < KEPT_READIES) {
        ready->core->readies[ready->core->n_readies++] = ready;
    } else {
        Py_XDECREF(ready->stop);
        PyObject_Free(ready);
    }
    Py_DECREF(type);
}

static PyObject *ready_take(Ready *ready)
{
    PyObject *value = ready->value;
    ready->value = NULL;
    if (value == NULL)
        PyErr_SetString(PyExc_RuntimeError, AGAIN);
    return value;
}

/* What `await` and asyncio's tasks call on 3.11, and its tasks later. */
static PySendResult ready_am_send(PyObject *self, PyObject *given, PyObject **result)
{
    if (given != Py_None && ((Ready *)self)->value != NULL) {
        *result = NULL;
        PyErr_SetString(PyExc_TypeError, "can't send non-None value to a just-started coroutine");
        return PYGEN_ERROR;
    }
    *result = ready_take((Ready *)self);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* What `await` calls from 3.12 on: the answer comes by a StopIteration, and making one costs more than the rest. */
static PyObject *ready_next(PyObject *self)
{
    Ready *ready = (Ready *)self;
    PyObject *value = ready_take(ready);
    if (value == NULL)
        return NULL;
#if PY_VERSION_HEX >= 0x030C0000
    if (ready->stop != NULL && Py_REFCNT(ready->stop) > 1)
        Py_CLEAR(ready->stop);
    if (ready->stop == NULL && (ready->stop = PyObject_CallNoArgs(PyExc_StopIteration)) == NULL) {
        ready->value = value;
        return NULL;
    }
    Py_XSETREF(((PyStopIterationObject *)ready->stop)->value, value);
    PyErr_SetRaisedException(Py_NewRef(ready->stop));
#else
    PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(value);
#endif
    return NULL;
}

static PyObject *ready_send(PyObject *self, PyObject *given)
{
    PyObject *result;
    if (given == Py_None)
        return ready_next(self);
    return ready_am_send(self, given, &result) == PYGEN_ERROR ? NULL : result;
}

static PyObject *ready_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return give_back((Ready *)self) ? NULL : Py_NewRef(Py_None);
}

/* As a coroutine that has not begun: it ends with that exception. */
static PyObject *ready_throw(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 1 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes from 1 to 3 arguments");
        return NULL;
    }
    if (((Ready *)self)->value == NULL) {
        PyErr_SetString(PyExc_RuntimeError, AGAIN);
        return NULL;
    }
    if (give_back((Ready *)self))
        return NULL;
    PyObject *type = args[0], *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        PyErr_SetObject(type, value);
    else
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException");
    return NULL;
}

static PyObject *ready_self(PyObject *self)
{
    return Py_NewRef(self);
}

/* It has no frame, never runs and awaits nothing: anyio and the loops ask for that. */
static PyObject *ready_nothing(PyObject *Py_UNUSED(self), void *closure)
{
    return Py_NewRef(closure == NULL ? Py_None : Py_False);
}

/* `inspect.iscoroutine`, which frameworks ask, asks for this. */
static PyObject *ready_class(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return Py_NewRef((PyObject *)&PyCoro_Type);
}

static PyObject *ready_name(PyObject *Py_UNUSED(self), void *name)
{
    return PyUnicode_FromString(name);
}

static PyMethodDef ready_methods[] = {METHOD("send", ready_send, METH_O), METHOD("close", ready_close, METH_NOARGS),
                                      METHOD("throw", ready_throw, METH_FASTCALL), {NULL, NULL, 0, NULL}};
static PyGetSetDef ready_getset[] = {{"__class__", ready_class, NULL, NULL, NULL},
                                     {"cr_frame", ready_nothing, NULL, NULL, NULL},
                                     {"cr_await", ready_nothing, NULL, NULL, NULL},
                                     {"cr_running", ready_nothing, NULL, NULL, ""},
                                     {"cr_suspended", ready_nothing, NULL, NULL, ""},
                                     {"__name__", ready_name, NULL, NULL, "alloc"},
                                     {"__qualname__", ready_name, NULL, NULL, "Cache.alloc"},
                                     {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot ready_slots[] = {{Py_tp_dealloc, ready_dealloc}, {Py_am_await, ready_self},
                                    {Py_am_send, ready_am_send},    {Py_tp_iter, ready_self},
                                    {Py_tp_iternext, ready_next},   {Py_tp_methods, ready_methods},
                                    {Py_tp_getset, ready_getset},   {0, NULL}};
PyType_Spec ready_spec = {"aslab._fastpath._core.Ready", sizeof(Ready), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, ready_slots};
